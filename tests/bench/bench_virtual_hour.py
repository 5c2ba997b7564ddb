"""One virtual hour of a whole cluster, twice: the hash of all that happened, and how fast it was simulated."""

import asyncio
import hashlib
import time
from typing import Any

from dopd.config import ClusterConfig, Config, PolicyConfig
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.stream import Inbound
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.request import Sampling
from tests.integration.replay import be_quiet

HOUR_S, RATE, ISL, OSL = 3600.0, 10.0, 1200, 200


def test_a_virtual_hour_of_four_workers_twice() -> None:
    be_quiet()
    hashes = []
    for _ in range(2):
        began_s = time.perf_counter()
        answers = run_virtual(_hour(seed=1))
        took_s = time.perf_counter() - began_s
        hashes.append(hashlib.blake2b(repr(answers).encode(), digest_size=16).hexdigest())
        tokens = sum(len(times) for *_, times in answers)
        print(
            f"\n{len(answers)} requests, {tokens} tokens in {took_s:.1f} s: {len(answers) / took_s:.0f} requests/s, "
            f"{tokens / took_s:.0f} tokens/s, {HOUR_S / took_s:.0f} times real time; hash {hashes[-1]}"
        )
    assert hashes[0] == hashes[1]


async def _hour(seed: int) -> list[tuple[Any, ...]]:
    runtime = VirtualRuntime(seed)
    config = Config(cluster=ClusterConfig(prefill=2, decode=2), policy=PolicyConfig(name="simple"))
    cluster = LocalCluster(runtime, config, together=True, latency_s=2e-4)
    await cluster.start()
    rng = runtime.rng("arrivals")
    answers: list[tuple[Any, ...]] = []
    tasks: set[asyncio.Task[None]] = set()

    async def client(prompt: list[int]) -> None:
        sampling = Sampling(max_tokens=OSL, temperature=0.0, ignore_eos=True)
        asked_s = runtime.now()
        tokens: list[int] = []
        times_s: list[float] = []
        async for piece in cluster.gateway.open(Inbound(prompt, sampling, Slo(), asked_s + 600.0)):
            tokens += piece.tokens
            times_s += piece.times_s
        answers.append((asked_s, tokens, times_s))

    while runtime.now() < HOUR_S:
        await asyncio.sleep(rng.expovariate(RATE))
        # No two prompts begin alike; ids that count up cost less than the simulation of the request.
        first = rng.randrange(1 << 30)
        task = asyncio.get_running_loop().create_task(client(list(range(first, first + ISL))))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await cluster.stop()
    return answers
