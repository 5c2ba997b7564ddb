"""Real engines, broker and store that are killed or frozen under load: requests go on, and their tokens stay right."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.live import Live
from tests.e2e.vllm.live_cluster import differences
from tests.engine_rig import Rig

pytestmark = [
    pytest.mark.nats,
    pytest.mark.chaos,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]

ISL, OSL, RATE = 300, 100, 1.5
RESTART_S = 240.0  # of one engine, on a machine with other work


def engine_of(clients: Live, worker_id: str) -> int:
    """The pid of EngineCore, the child that computes."""
    parent = clients.process(worker_id).pid
    children = [pid for file in Path(f"/proc/{parent}/task").glob("*/children") for pid in file.read_text().split()]
    engines = [pid for pid in children if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(engines) == 1, children
    return int(engines[0])


@asynccontextmanager
async def load(clients: Live, alone: Rig, **more: object) -> AsyncIterator[None]:
    """Requests come all the while; afterwards each has ended once and with the right tokens."""
    first = len(clients.asked)
    async with clients.open_load(RATE, ISL, OSL, timeout_s=200.0, **more):
        await asyncio.sleep(4)
        yield
        await asyncio.sleep(4)
    mine = clients.asked[first:]
    assert clients.verdict() == []
    assert len(mine) > 5
    if "temperature" not in more:
        assert await differences([each for each in mine if each.failure is None], alone) == []


def store_ok(clients: Live) -> bool:
    return all(state.store_ok for state in clients.cluster.states.values())


async def back(clients: Live) -> None:
    """Until all workers serve again."""
    states = clients.cluster.states
    await clients.until(lambda: all(s.phase == "serving" for s in states.values()), 60.0, "all workers serve")


async def reborn(clients: Live, worker_id: str, incarnation: str) -> None:
    """Until another incarnation of a worker serves."""

    def serves() -> bool:
        state = clients.cluster.states[worker_id]
        return state.incarnation != incarnation and state.phase == "serving"

    await clients.until(serves, RESTART_S, f"{worker_id} is back")


async def test_a_frozen_engine_gives_back_pressure_and_no_recompute(clients: Live, alone: Rig) -> None:
    """10 s are less than `stall_s`: the worker takes nothing new, and what it has goes on afterwards."""
    misses = clients.kv_misses()
    target = clients.with_role("decode")[0]
    async with load(clients, alone):
        pid = engine_of(clients, target)
        clients.signal(pid, signal.SIGSTOP)
        await asyncio.sleep(5)
        assert clients.cluster.states[target].phase == "stalled"
        await asyncio.sleep(5)
        clients.signal(pid, signal.SIGCONT)
    assert clients.kv_misses() == misses
    assert all(each.failure is None for each in clients.asked)
    await clients.idle()


async def test_a_frozen_worker_that_thaws_adds_nothing_to_what_its_successor_made(clients: Live, alone: Rig) -> None:
    target = clients.with_role("decode")[0]
    async with load(clients, alone, temperature=1.0):
        pid = clients.freeze(target)
        await asyncio.sleep(8)  # longer than its lease: its requests go on elsewhere
        clients.thaw(pid)
    await back(clients)
    await clients.idle()


async def test_a_killed_store_costs_a_recompute_and_comes_back(clients: Live, alone: Rig) -> None:
    async with load(clients, alone):
        clients.send("lmcache", signal.SIGKILL)
        await clients.until(lambda: not store_ok(clients), 30.0, "workers notice that the store is gone")
        await clients.until(lambda: store_ok(clients), 90.0, "workers notice that the store is back")
    assert all(each.failure is None for each in clients.asked)
    misses = clients.kv_misses()
    for _ in range(3):
        await (await clients.ask(ISL, 5)).done.wait()
    assert clients.kv_misses() == misses


async def test_a_frozen_store_holds_nobody_up_for_long(clients: Live, alone: Rig) -> None:
    async with load(clients, alone):
        pid = clients.freeze("lmcache")
        await clients.until(lambda: not store_ok(clients), 30.0, "workers notice that the store is frozen")
        await asyncio.sleep(3)
        clients.thaw(pid)
        await clients.until(lambda: store_ok(clients), 60.0, "workers notice that the store is back")
    assert all(each.failure is None for each in clients.asked)


async def test_streams_outlive_a_frozen_broker(clients: Live, alone: Rig) -> None:
    async with load(clients, alone):
        pid = clients.freeze("nats")
        await asyncio.sleep(5)
        clients.thaw(pid)
    await back(clients)
    await clients.idle()


async def test_streams_outlive_a_restart_of_the_broker(clients: Live, alone: Rig) -> None:
    async with load(clients, alone):
        clients.send("nats", signal.SIGKILL)
        await asyncio.sleep(3)
    await back(clients)


async def test_requests_of_a_killed_engine_go_on_elsewhere_and_the_worker_comes_back(clients: Live, alone: Rig) -> None:
    target = clients.with_role("decode")[0]
    before = clients.cluster.states[target].incarnation
    async with load(clients, alone):
        clients.signal(engine_of(clients, target), signal.SIGKILL)
        await asyncio.sleep(2)
    await reborn(clients, target, before)
    assert all(each.failure is None for each in clients.asked)
    await clients.idle()


async def test_requests_of_a_killed_worker_go_on_elsewhere_and_its_engine_dies_with_it(
    clients: Live, alone: Rig
) -> None:
    target = clients.with_role("decode")[0]
    before = clients.cluster.states[target].incarnation
    engine = engine_of(clients, target)
    async with load(clients, alone):
        clients.send(target, signal.SIGKILL)
        await clients.until(lambda: not Path(f"/proc/{engine}").exists(), 5.0, "no orphan after 5 s")
    await reborn(clients, target, before)
    assert all(each.failure is None for each in clients.asked)
    await clients.idle()
