"""The load of `dopd up --demo`: Poisson arrivals on the HTTP API, and a status line every few seconds.

Consumes `[workload]` and the gateway's URL; produces streamed completions, and what a client saw of them. A
measurement is `dopd_loadgen`'s business; this only shows that something happens.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from statistics import quantiles

import msgspec

from dopd.config import WorkloadConfig
from dopd.runtime.clock import RealRuntime
from dopd.supervisor.console import Console
from dopd.supervisor.http import get, request
from dopd.supervisor.ready import Cluster

STATUS_S = 5.0
LENGTH_LIMIT = 4.0  # times the mean


@dataclass
class Tally:
    """What came back since the last status line."""

    sent: int = 0
    failed: int = 0
    ttft_s: list[float] = field(default_factory=list)
    error: str = ""

    def clear(self) -> None:
        """Begin the next line. Requests under way will count there."""
        self.sent, self.failed, self.ttft_s, self.error = 0, 0, [], ""


async def run(url: str, workload: WorkloadConfig, cluster: Cluster, console: Console) -> None:
    """Send until cancelled."""
    if workload.requests_per_s <= 0:
        return
    model = str(msgspec.json.decode((await get(f"{url}/v1/models"))[1])["data"][0]["id"])
    console.line(
        f"load: {workload.requests_per_s:g} requests/s, about {workload.isl_tokens} tokens in and "
        f"{workload.osl_tokens} out ([workload]; --no-load for none)"
    )
    rng = RealRuntime(workload.seed).rng("workload")
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        group.create_task(_report(tally, cluster, console))
        while True:
            await asyncio.sleep(rng.expovariate(workload.requests_per_s))
            group.create_task(_one(url, _body(model, workload, rng), tally))


def _body(model: str, workload: WorkloadConfig, rng: random.Random) -> bytes:
    prompt = [rng.randrange(10, 250) for _ in range(_length(workload.isl_tokens, rng))]
    wish = {
        "model": model,
        "prompt": prompt,
        "max_tokens": _length(workload.osl_tokens, rng),
        "stream": True,
        "ignore_eos": True,
    }
    return msgspec.json.encode(wish)


def _length(mean: int, rng: random.Random) -> int:
    """Skewed, as real lengths are; bounded."""
    return int(min(max(1.0, rng.gammavariate(2.0, mean / 2.0)), LENGTH_LIMIT * mean))


async def _one(url: str, body: bytes, tally: Tally) -> None:
    """One request; its errors are counted, never raised."""
    loop = asyncio.get_running_loop()
    tally.sent += 1
    sent_s = loop.time()
    first = done = False
    try:
        async with request(f"{url}/v1/completions", body) as response:
            async for line in response.lines():
                if response.status != 200:
                    tally.error = line.decode(errors="replace")[:200]
                elif line.startswith(b"data:") and not first:
                    first = True
                    tally.ttft_s.append(loop.time() - sent_s)
                done = done or line.startswith(b"data: [DONE]")
    except (OSError, ValueError, IndexError, EOFError) as error:
        tally.error = f"{type(error).__name__}: {error}"
    tally.failed += not done


async def _report(tally: Tally, cluster: Cluster, console: Console) -> None:
    while True:
        await asyncio.sleep(STATUS_S)
        console.line(status_line(tally, cluster))
        tally.clear()


def status_line(tally: Tally, cluster: Cluster) -> str:
    """Requests, what the client waited, who does what."""
    workers = sorted(cluster.states.values(), key=lambda state: state.worker_id)
    roles = " ".join(f"{state.worker_id}:{state.role[0].upper()}" for state in workers if state.phase == "serving")
    running = sum(state.running for state in workers)
    first = "TTFT: none yet"
    if tally.ttft_s:
        cut = quantiles(tally.ttft_s * 2, n=100, method="inclusive")
        first = f"TTFT p50 {cut[49]:.3f} s, p99 {cut[98]:.3f} s"
    now = time.strftime("%H:%M:%S", time.localtime(RealRuntime().now()))
    line = f"{now}  {tally.sent / STATUS_S:4.1f} requests/s  {first}  running {running:3d}  roles {roles}"
    return line + (f"  failed {tally.failed}: {tally.error}" if tally.failed else "")
