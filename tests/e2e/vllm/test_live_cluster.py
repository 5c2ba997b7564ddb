"""A live cluster of real engines, each worker a process: role changes at high load, every token checked.

What is right is computed afterwards by one engine that works alone and undisturbed.
"""

import asyncio
import os
from itertools import cycle

import pytest

from dopd_proto.base import DrainMode, Role
from tests.e2e.live import OTHER, Live
from tests.e2e.vllm.live_cluster import differences
from tests.engine_rig import Rig

pytestmark = [pytest.mark.nats, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

ISL, OSL, CLIENTS, IN_FLIGHT = 300, 200, 28, 5
# Of the capacity, beside the bursts: with them 0.8 and more. Changes that wait, and so their bursts, are further apart.
LOAD: dict[DrainMode, float] = {"overlap": 0.45, "migrate": 0.45, "wait": 0.7}
# Prefills are short here: without a burst of long ones there are never five of them on one worker.
BURST, BURST_ISL = 14, 1000
# In each mode. REAL_ROLE_CHANGES=20 is the long run.
CHANGES = int(os.environ.get("REAL_ROLE_CHANGES", "4"))


class Flipper:
    """D to P and P to D in turn, each time on a worker with enough in hand."""

    def __init__(self, clients: Live) -> None:
        self.clients = clients
        self.in_flight: list[int] = []

    async def change(self, role: Role, drain: DrainMode) -> None:
        await asyncio.sleep(1.0)  # work of the new role comes in between
        worker_id = await (self._busy_prefill() if role == "prefill" else self._busy("decode", 120.0))
        assert worker_id is not None, f"no busy {role} worker"
        self.in_flight.append(self.clients.in_flight(worker_id))
        await self.clients.set_role(worker_id, OTHER[role], drain)

    async def _busy_prefill(self) -> str | None:
        """Bursts until one is seen in time. Each waits for room on decode workers: without it prefill is held back."""
        for _ in range(10):
            await self.clients.until(self._room, 120.0, "room on decode workers")
            for _ in range(BURST):
                await self.clients.ask(BURST_ISL, OSL, timeout_s=240.0)
            if worker_id := await self._busy("prefill", 5.0):
                return worker_id
        return None

    def _room(self) -> bool:
        return sum(map(self.clients.in_flight, self.clients.with_role("decode"))) <= CLIENTS

    async def _busy(self, role: Role, limit_s: float) -> str | None:
        end_s = self.clients.now() + limit_s
        while self.clients.now() < end_s:
            if worker_id := self._ready(role):
                return worker_id
            await asyncio.sleep(0.02)
        return None

    def _ready(self, role: Role) -> str | None:
        mine = self.clients.with_role(role)
        busiest = max(mine, key=self.clients.in_flight, default=None)
        return busiest if len(mine) > 1 and busiest and self.clients.in_flight(busiest) >= IN_FLIGHT else None


@pytest.mark.parametrize("drain", ["overlap", "migrate", "wait"])
async def test_role_changes_under_load_lose_no_request_and_no_token(
    clients: Live, alone: Rig, drain: DrainMode
) -> None:
    first, misses = len(clients.asked), clients.kv_misses()
    capacity = await clients.capacity(CLIENTS, ISL, OSL, warm_s=6.0, measured_s=12.0)
    start, began_s = len(clients.asked), clients.now()
    flipper = Flipper(clients)
    async with clients.open_load(LOAD[drain] * capacity, ISL, OSL, timeout_s=240.0):
        for role, _ in zip(cycle(("decode", "prefill")), range(CHANGES), strict=False):
            await flipper.change(role, drain)
        took_s = clients.now() - began_s
    asked = len(clients.asked) - start
    print(
        f"\n{drain}: capacity {capacity:.2f} requests/s; load {asked / took_s:.2f} requests/s "
        f"= {asked / took_s / capacity:.0%}, {asked} requests; {len(flipper.in_flight)} changes in {took_s:.0f} s; "
        f"in flight on the changed worker at least {min(flipper.in_flight)}; "
        f"KV misses {clients.kv_misses() - misses}"
    )
    mine = clients.asked[first:]
    assert clients.verdict() == []
    assert not clients.failures()
    assert min(flipper.in_flight) >= IN_FLIGHT
    assert await differences(mine, alone) == []
    await clients.idle()
