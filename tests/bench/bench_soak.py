"""Half an hour at 70 % of capacity, over HTTP and NATS: what grows, what is left over, what failed.

The cluster is that of `dopd up --demo` with its default policy, whose planner decides each round; a steady load need
not make it change a role. Every answer is compared with what the emulated model says. Prints memory and open files of
each service over time, and their slopes; asserts that no request failed and that nothing is left in gateway and
workers, and nothing about time or memory.
`make bench BENCH=soak`; SOAK_S is how long (default 1800).
"""

import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from dopd.supervisor.http import get
from tests.bench.processes import Taken, taken
from tests.e2e.live import Live, demo, live

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
SOAK_S = float(os.environ.get("SOAK_S", "1800"))
SHARE = 0.7
PROFILE, ISL, OSL, CLIENTS = "h100-llama-70b-fp8-tp2", 1000, 100, 60
SAMPLES = 30
SETTLE = 0.3
"""The first part of the run, in which caches fill: slopes are of the rest."""
SERVICES = ("gateway", "w1", "w2", "w3", "w4", "planner", "forecaster", "store", "nats", "supervisor")
_HELD = ("dopd_waiting_requests", "dopd_running_requests", "dopd_http_held_bytes", "dopd_http_connections")


@dataclass
class Watch:
    """Samples over time, and what became of the requests."""

    pids: dict[str, int]
    at_s: list[float] = field(default_factory=list)
    rows: list[dict[str, Taken]] = field(default_factory=list)
    requests: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def sample(self, at_s: float) -> None:
        """What each service takes now."""
        self.at_s.append(at_s)
        self.rows.append({name: taken(pid) for name, pid in self.pids.items()})
        now = self.rows[-1]
        memory = " ".join(f"{name} {each.rss_mb:.1f}" for name, each in now.items())
        print(f"{at_s:6.0f} s  {self.requests:6d} requests, {self.wrong.total()} wrong  RSS MB: {memory}", flush=True)

    def settle(self, clients: Live) -> None:
        """Count the requests that are over, and forget them: the client's memory is not what is measured."""
        over = [asked for asked in clients.asked if asked.done.is_set()]
        clients.asked[:] = [asked for asked in clients.asked if not asked.done.is_set()]
        self.requests += len(over)
        for asked in over:
            if asked.failure is not None:
                self.wrong[asked.failure.message] += 1
            elif why := asked.broken or asked.wrong():
                self.wrong[why] += 1

    def told(self) -> None:
        """Memory and files of each service: first, last, and how they grow."""
        begin = int(SETTLE * len(self.rows))
        print(
            f"\n{'':12} RSS MB: first    last    peak   MB/h after {self.at_s[begin]:.0f} s | files: first last | CPU s"
        )
        for name in self.pids:
            memory = [row[name].rss_mb for row in self.rows]
            files = [row[name].files for row in self.rows]
            cpu_s = self.rows[-1][name].cpu_s - self.rows[0][name].cpu_s
            growth = slope(self.at_s[begin:], memory[begin:]) * 3600
            print(
                f"{name:12} {memory[0]:13.1f} {memory[-1]:7.1f} {max(memory):7.1f} {growth:+12.2f} {'':11}"
                f"| {files[0]:12d} {files[-1]:4d} | {cpu_s:6.1f}"
            )


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least squares line."""
    return float(np.polyfit(xs, ys, 1)[0]) if len(xs) > 1 else 0.0


async def nats_load(clients: Live, rate: float) -> None:
    """Poisson arrivals over NATS, half of them streamed."""
    next_s = clients.now()
    while True:
        next_s += clients.rng.expovariate(rate)
        await asyncio.sleep(next_s - clients.now())
        await clients.ask(ISL, OSL, stream=clients.rng.random() < 0.5, timeout_s=60.0)


async def held(clients: Live) -> dict[str, float]:
    """What the gateway says it holds."""
    _, page = await get(f"{clients.up.state.operator_url('gateway')}/metrics")
    found = re.findall(rb"^(\w+) ([0-9.e+]+)$", page, re.MULTILINE)
    return {name.decode(): float(value) for name, value in found if name.decode() in _HELD}


async def soak(clients: Live, watch: Watch) -> float:
    """The load; returns the capacity that was measured before it."""
    capacity = await clients.capacity(CLIENTS, ISL, OSL, warm_s=10.0, measured_s=20.0)
    rate = SHARE * capacity
    print(f"\ncapacity {capacity:.2f} requests/s of {ISL} + {OSL} tokens; load {rate:.2f}, half HTTP, half NATS")
    watch.settle(clients)
    async with clients.open_load(rate / 2, ISL, OSL, timeout_s=60.0):
        over_nats = asyncio.create_task(nats_load(clients, rate / 2))
        began_s = clients.now()
        for number in range(SAMPLES + 1):
            await asyncio.sleep(began_s + number * SOAK_S / SAMPLES - clients.now())
            watch.settle(clients)
            watch.sample(clients.now() - began_s)
            assert not over_nats.done(), over_nats.exception()
        over_nats.cancel()
    for asked in list(clients.asked):
        await asked.done.wait()
    watch.settle(clients)
    return capacity


async def test_memory_and_leftovers_over_a_long_load(tmp_path: Path) -> None:
    with demo(tmp_path, engine__profile=PROFILE, policy__name="dopd") as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        watch = Watch({name: process.pid for name, process in up.note().items() if name in SERVICES})
        async with live(up) as clients:
            await soak(clients, watch)
            await clients.idle()
            await asyncio.sleep(3.0)  # heartbeats: the gateway's counts, and its keep-alive connections
            watch.told()
            print(f"{watch.requests} requests, wrong: {dict(watch.wrong)}, KV misses {clients.kv_misses()}")
            for worker_id, state in sorted(clients.cluster.states.items()):
                requests, kv_tokens = state.running + state.waiting, state.kv_used_tokens
                print(f"left in {worker_id}: {requests} requests, {kv_tokens} KV tokens; role epoch {state.epoch}")
            left = await held(clients)
            print(f"left in the gateway: {left}")
        up.interrupt()
        up.code(60.0)
    assert not watch.wrong
    assert left["dopd_waiting_requests"] == left["dopd_running_requests"] == left["dopd_http_held_bytes"] == 0
