"""Role changes of a live emulated cluster at high load: real processes, a real broker, every token checked."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

import pytest

from dopd.errors import RequestError
from dopd_proto.base import DrainMode, Role
from tests.e2e.live import OTHER, Live, demo, live
from tests.e2e.running import Running

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

# Steps are slow enough for two cores to carry six workers. So many clients that prefill workers always have a queue,
# and decode workers about ten requests each: what is asked for is all that the cluster can do.
PROFILE, ISL, OSL = "h100-llama-70b-fp8-tp2", 4000, 200
CLIENTS, IN_FLIGHT = 80, 5
MODES: tuple[DrainMode, ...] = ("overlap", "migrate", "wait")
# Even, or a pool would run empty. 200 in sum; LIVE_ROLE_CHANGES=200,200,200 is the long run, a quarter of an hour.
CHANGES = dict(zip(MODES, map(int, os.environ.get("LIVE_ROLE_CHANGES", "88,88,24").split(",")), strict=True))
PAUSE_S = 0.4


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = {
        "cluster__prefill": 3,
        "cluster__decode": 3,
        "engine__profile": PROFILE,
        "worker__max_prefills": 8,  # a longer queue would only make `wait` longer
    }
    with demo(tmp_path_factory.mktemp("roles"), **settings) as running:
        running.wait_for("Ctrl-C stops everything", 60.0)
        yield running
        running.note()
        running.interrupt()
        running.code(60.0)
        assert running.left() == []


class Flipper:
    """Changes roles one after the other, P to D and D to P in turn, each time on a worker with enough in hand."""

    def __init__(self, clients: Live, workers: list[str], first: Role) -> None:
        self.clients, self.workers, self.first = clients, workers, first
        self.in_flight: list[int] = []
        self.made: Counter[tuple[DrainMode, Role]] = Counter()

    async def change(self, drain: DrainMode, count: int) -> None:
        for role, _ in zip(cycle((self.first, OTHER[self.first])), range(count), strict=False):
            await self.clients.until(lambda role=role: self._ready(role), 30.0, f"a busy {role} worker")  # type: ignore[misc]
            worker_id = self._ready(role)
            assert worker_id is not None
            self.in_flight.append(self.clients.in_flight(worker_id))
            try:
                await self.clients.set_role(worker_id, OTHER[role], drain)
            except RequestError as error:
                shown = [(s.worker_id, s.role, s.phase, s.running) for s in self.clients.cluster.states.values()]
                raise AssertionError(f"{worker_id} to {OTHER[role]}: {error}; {sorted(shown)}") from error
            self.made[drain, role] += 1
            await asyncio.sleep(PAUSE_S)

    def _ready(self, role: Role) -> str | None:
        mine = [w for w in self.clients.with_role(role) if w in self.workers]
        busiest = max(mine, key=self.clients.in_flight, default=None)
        return busiest if busiest and self.clients.in_flight(busiest) >= IN_FLIGHT else None


@pytest.mark.timeout(100 + 2 * sum(CHANGES.values()))
async def test_200_role_changes_under_load_lose_no_request_and_no_token(up: Running) -> None:
    async with live(up) as clients:
        capacity = await clients.capacity(CLIENTS, ISL, OSL, warm_s=6.0, measured_s=8.0)
        # One lends to decode what the other lends to prefill, so that on average the pools are as they were.
        slow = Flipper(clients, ["w1", "w4"], "prefill")
        quick = Flipper(clients, ["w2", "w3", "w5", "w6"], "decode")

        async def quick_ones() -> None:
            await quick.change("overlap", CHANGES["overlap"])
            await quick.change("migrate", CHANGES["migrate"])

        async with clients.closed_load(CLIENTS, ISL, OSL):
            await asyncio.sleep(3.0)
            began_s, before = clients.now(), clients.answered()
            await asyncio.gather(slow.change("wait", CHANGES["wait"]), quick_ones())
            took_s, answered = clients.now() - began_s, clients.answered() - before
        in_flight = sorted(slow.in_flight + quick.in_flight)
        print(
            f"\ncapacity {capacity:.2f} requests/s (closed loop, {CLIENTS} clients, ISL {ISL}, OSL {OSL}); during the "
            f"changes {answered / took_s:.2f} requests/s = {answered / took_s / capacity:.0%}; "
            f"{len(clients.asked)} requests in all\n"
            f"{len(in_flight)} changes in {took_s:.0f} s: {dict(slow.made + quick.made)}\n"
            f"in flight on the changed worker: least {in_flight[0]}, median {in_flight[len(in_flight) // 2]}; "
            f"KV misses {clients.kv_misses()}"
        )
        assert clients.verdict() == []
        assert not clients.failures()
        assert len(in_flight) == sum(CHANGES.values()) >= 200
        assert in_flight[0] >= IN_FLIGHT
        assert answered >= 0.7 * capacity * took_s
        assert clients.kv_misses() == 0
        await clients.idle()
