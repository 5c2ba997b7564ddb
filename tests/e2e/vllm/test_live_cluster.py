"""A live cluster of real engines, each worker a process: role changes at high load, every token checked.

What is right is computed afterwards by one engine that works alone and undisturbed.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path

import pytest
import pytest_asyncio

from dopd_proto.base import DrainMode, Role
from tests.e2e.live import OTHER, Asked, Live, live
from tests.e2e.running import Running
from tests.engine_rig import Rig, job
from tests.nats_server import server_binary

pytestmark = [pytest.mark.nats, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

START_S = 500.0
VOCABULARY = 1024
ISL, OSL, CLIENTS, IN_FLIGHT, LOAD = 300, 200, 28, 5, 0.8
# 20 changes in each mode by default; a quick look takes fewer.
CHANGES = int(os.environ.get("REAL_ROLE_CHANGES", "20"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def clients(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """One prefill and two decode workers: the least with which a role can change in either direction."""
    server_binary()
    folder = tmp_path_factory.mktemp("live")
    settings = {
        "DOPD__CLUSTER__STATE_DIR": str(folder),
        "DOPD__CLUSTER__PREFILL": "1",
        "DOPD__CLUSTER__DECODE": "2",
        "DOPD__GATEWAY__PORT": "0",
        "DOPD__ENGINE__KIND": "vllm",
        "DOPD__ENGINE__LMCACHE_GB": "0.5",
        "MODEL": str(model),
    }
    with Running(["dopd.cli", "up"], folder, settings) as up:
        await asyncio.to_thread(up.wait_for, "Ctrl-C stops everything", START_S)
        async with live(up) as connected:
            connected.truth, connected.vocabulary = None, VOCABULARY
            yield connected
        up.note()
        up.interrupt()
        assert await asyncio.to_thread(up.code, 60.0) in (0, 130)
        assert up.left() == []


async def differences(asked: list[Asked], alone: Rig) -> list[str]:
    """Requests whose tokens are not those of one engine alone."""
    jobs = [job(each.prompt, each.max_tokens) for each in asked]
    wrong = []
    for each, done in zip(asked, await alone.run(*jobs), strict=True):
        if each.tokens != done.tokens:
            at = next((i for i, (a, b) in enumerate(zip(each.tokens, done.tokens, strict=False)) if a != b), None)
            wrong.append(f"{len(each.tokens)} of {len(done.tokens)} tokens, first other one at {at}")
    return wrong


class Flipper:
    """D to P and P to D in turn, each time on a worker with enough in hand."""

    def __init__(self, clients: Live) -> None:
        self.clients = clients
        self.in_flight: list[int] = []

    async def change(self, role: Role, drain: DrainMode) -> None:
        if role == "prefill":
            # Prefills are short here: without a burst there are never five of them on one worker.
            for _ in range(16):
                await self.clients.ask(ISL, OSL, timeout_s=240.0)
        await self.clients.until(lambda: self._ready(role), 120.0, f"a busy {role} worker")
        worker_id = self._ready(role)
        assert worker_id is not None
        self.in_flight.append(self.clients.in_flight(worker_id))
        await self.clients.set_role(worker_id, OTHER[role], drain)

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
    async with clients.open_load(LOAD * capacity, ISL, OSL, timeout_s=240.0):
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
    assert all(each.good for each in mine)
    assert min(flipper.in_flight) >= IN_FLIGHT
    assert await differences(mine, alone) == []
    await clients.idle()
