"""What metrics cost: the gateway's work per request that ends, a look at its page, and CPU per streamed token of a
running gateway while nobody looks and while somebody looks ten times a second, in interleaved rounds of the same load.

Measures and asserts nothing about time. Run: `.venv/bin/pytest -s --timeout 0 tests/bench/bench_metrics.py`.
"""

import asyncio
import os
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from dopd.obs.log import logs_from
from dopd.obs.metrics import Metrics
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.core import Request
from dopd_gateway.metrics import GatewayMetrics
from dopd_gateway.stream import Inbound
from dopd_gateway.timeline import Place
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.request import Sampling
from tests.e2e.running import Running
from tests.nats_server import server_binary

REQUESTS, AT_ONCE, ISL, OSL, ROUNDS = 300, 32, 200, 60, 4
LOOK_EVERY_S = 0.1
SETTINGS = {
    "DOPD__GATEWAY__PORT": "0",
    "DOPD__CLUSTER__PREFILL": "1",
    "DOPD__CLUSTER__DECODE": "1",
    "DOPD__POLICY__NAME": "simple",
}


def ended_request() -> Request:
    """As a gateway has it at its end."""
    inbound = Inbound([1] * ISL, Sampling(max_tokens=OSL), Slo(), 60.0)
    request = Request("req-1", inbound, 0.0, output=[1] * OSL, first_s=0.1, last_s=0.5, attempt=1)
    request.timeline.first_token(0.1, 0.11, Place("w1", 1, 1))
    request.timeline.close(0.6)
    return request


def test_work_per_request_and_per_look() -> None:
    async def main() -> None:
        cluster = LocalCluster(VirtualRuntime(0))
        await cluster.start()
        page = Metrics("g1")
        metrics = GatewayMetrics(page.histogram)
        page.add(lambda: metrics.samples(cluster.gateway))
        request, count = ended_request(), 100_000
        start_s = time.process_time()
        for _ in range(count):
            metrics.ended(request, "length", None)
        per_request_s = (time.process_time() - start_s) / count
        for number in range(1000):
            cluster.gateway._requests[f"r{number}"] = request
        start_s = time.process_time()
        for _ in range(200):
            text = page.page()
        look_s = (time.process_time() - start_s) / 200
        cluster.gateway._requests.clear()
        await cluster.stop()
        per_token = f"{per_request_s / OSL * 1e9:.0f} ns for each of {OSL} tokens"
        print(f"\nper request that ends {per_request_s * 1e6:.1f} µs: {per_token}")
        print(f"a look with 1,000 requests in hand {look_s * 1e3:.2f} ms, {len(text)} bytes")

    with logs_from("warning"):
        run_virtual(main())


@dataclass
class Served:
    """A gateway that is up: where to ask, where to look, whose CPU counts."""

    url: str
    page: str
    model: str
    pid: int

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(up: Running) -> Served:
    up.wait_for("Ready after", 60.0)
    up.wait_for("curl ")
    line = next(line for line in up.output.splitlines() if line.strip().startswith("curl "))
    _, url, *_, body = shlex.split(line)
    page = up.state.operator_url("gateway") + "/metrics"
    return Served(url, page, msgspec.json.decode(body)["model"], up.note()["gateway"].pid)


async def look(session: aiohttp.ClientSession, page: str) -> None:
    while True:
        async with session.get(page) as response:
            await response.read()
        await asyncio.sleep(LOOK_EVERY_S)


async def round_of(session: aiohttp.ClientSession, to: Served, looked_at: bool) -> float:
    """CPU seconds of the gateway per streamed token."""
    body = msgspec.json.encode(
        {"model": to.model, "prompt": list(range(3, 3 + ISL)), "max_tokens": OSL, "ignore_eos": True, "stream": True}
    )
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate, session.post(to.url, data=body) as response:
            assert response.status == 200 and b"[DONE]" in await response.read()

    looking = asyncio.create_task(look(session, to.page)) if looked_at else None
    before_s = to.cpu_s()
    async with asyncio.timeout(120.0):
        await asyncio.gather(*(one() for _ in range(REQUESTS)))
    used_s = to.cpu_s() - before_s
    if looking is not None:
        looking.cancel()
    return used_s / (REQUESTS * OSL)


@pytest.mark.nats
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_per_streamed_token(tmp_path: Path) -> None:
    async def main(to: Served) -> dict[bool, list[float]]:
        found: dict[bool, list[float]] = {False: [], True: []}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers={"content-type": "application/json"}) as session:
            await round_of(session, to, False)  # warm
            for number in range(2 * ROUNDS):
                looked_at = number % 4 in (1, 2)
                found[looked_at].append(await round_of(session, to, looked_at))
        return found

    server_binary()
    settings = {**SETTINGS, "DOPD__CLUSTER__STATE_DIR": str(tmp_path)}
    with Running(["dopd.cli", "up", "--demo", "--no-load"], tmp_path, settings) as up:
        found = asyncio.run(main(served(up)))
        up.interrupt()
        up.code(60.0)
    print(
        f"\n{ROUNDS} rounds of {REQUESTS} requests, {OSL} tokens each, {AT_ONCE} at once; CPU of the gateway per token"
    )
    for looked_at, name in ((False, "nobody looks"), (True, "10 looks a second")):
        values = [value * 1e6 for value in found[looked_at]]
        print(f"{name:<18} {statistics.mean(values):6.1f} µs  ({', '.join(f'{value:.1f}' for value in values)})")
