"""Processes of a live emulated cluster are killed and frozen under load: requests go on, or end with one error in time.

The clients speak HTTP, so that a dead broker hurts the cluster alone and not the view of it.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopd.runtime.clock import RealRuntime
from dopd.supervisor.ports import this_or_free
from tests.e2e.live import OTHER, Live, demo, live
from tests.e2e.running import ROOT, Running, wait_until
from tests.e2e.stretches import stretches
from tests.house import CONFIG, House, run_real

pytestmark = [
    pytest.mark.nats,
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.timeout(120),
]

PROFILE, ISL, OSL, RATE = "a100-qwen2.5-14b-bf16-tp1", 600, 100, 5.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with demo(tmp_path_factory.mktemp("chaos"), engine__profile=PROFILE) as running:
        running.wait_for("Ctrl-C stops everything", 60.0)
        yield running


async def whole(clients: Live) -> None:
    """All four workers serve, two in each role, and a planner leads that knows them; each test begins here."""
    await clients.until(lambda: len(clients.with_role("prefill")) + len(clients.with_role("decode")) == 4, 40.0, "four")
    await clients.until_planner(workers=4)
    for name, role in zip(("w1", "w2", "w3", "w4"), ("prefill", "prefill", "decode", "decode"), strict=True):
        if clients.cluster.states[name].role != role:
            await clients.set_role(name, role, "overlap")  # type: ignore[arg-type]
    for name in ("w1", "w2", "w3", "w4"):
        await clients.roles("unpin", name)


def busiest(clients: Live, role: str) -> str:
    return max(clients.with_role(role), key=clients.in_flight)  # type: ignore[arg-type]


def all_good(clients: Live) -> None:
    """Every request got its exact tokens."""
    assert clients.verdict() == []
    assert not clients.failures()
    assert not [asked.broken for asked in clients.asked if asked.broken]


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_killed_worker_costs_no_request_and_no_token(up: Running, role: str) -> None:
    async with live(up) as clients:
        await whole(clients)
        async with clients.open_load(RATE, ISL, OSL):
            await asyncio.sleep(3.0)
            victim = busiest(clients, role)
            old = clients.cluster.states[victim].incarnation
            clients.send(victim, signal.SIGKILL)
            await clients.until(lambda: clients.cluster.states[victim].incarnation != old, 20.0, "a new life")
            await asyncio.sleep(2.0)
        all_good(clients)
        await clients.idle()


async def test_a_worker_that_thaws_adds_no_token_to_what_another_has_taken_over(up: Running) -> None:
    """With chance in the tokens each stretch by one engine can be told from the next."""
    async with live(up) as clients:
        await whole(clients)
        async with clients.open_load(RATE, ISL, OSL, temperature=1.0):
            await asyncio.sleep(4.0)
            victim = busiest(clients, "decode")
            hit = clients.in_flight(victim)
            pid = clients.freeze(victim)
            await asyncio.sleep(5.0)
            clients.thaw(pid)
            await asyncio.sleep(2.0)
        assert clients.verdict() == []
        assert not clients.failures()
        assert hit >= 3
        found = [stretches(asked.prompt, asked.tokens) for asked in clients.asked]
        # One attempt is one token of a prefill worker and a stretch of a decode worker; there are two attempts at most.
        assert {len(x) for x in found} == {1, 2}, [x for x in found if len(x) > 2]
        assert sum(len(x) == 2 for x in found) >= 3
        await clients.idle()


def test_a_decode_worker_that_stalls_for_10_s_holds_prefill_back_and_nothing_is_computed_twice() -> None:
    """In one process on the real loop, where an engine can be stalled."""
    from msgspec.structs import replace

    config = replace(
        CONFIG,
        cluster=replace(CONFIG.cluster, prefill=1, decode=1),
        worker=replace(CONFIG.worker, slow_s=30.0, stall_s=15.0, max_prefills=4, resend_buffer_s=1.0),
        engine=replace(CONFIG.engine, sim_store_tokens=40_000),
    )
    most: list[int] = []

    async def stall(house: House) -> None:
        await asyncio.sleep(1.0)
        house.cluster.engines["w2"].stall(10.0)
        gateway = house.cluster.gateway
        for _ in range(95):
            await asyncio.sleep(0.1)
            most.append(sum(r.total_tokens for r in gateway._requests.values() if r.unfetched))
        assert gateway._waiting, "prefill was not held back"
        assert not house.cluster.workers["w1"]._held

    house = run_real(stall, RealRuntime(1), requests=70, rate=20.0, config=config)
    assert house.kv_misses() == 0
    assert 0 < max(most) <= 40_000 * config.gateway.kv_budget_share
    print(f"\nunfetched: {max(most)} tokens at most, of {40_000 * config.gateway.kv_budget_share:.0f}")


# --- gateways -------------------------------------------------------------------------------------------------------


@pytest.fixture
def second(up: Running, tmp_path: Path) -> Iterator[str]:
    """The URL of a second gateway."""
    port = this_or_free("127.0.0.1", 0)
    env = {**os.environ, "DOPD_CONFIG": str(up.state.config_file), "DOPD__GATEWAY__PORT": str(port)}
    with (tmp_path / "g2.log").open("wb") as log:
        command = [sys.executable, "-m", "dopd_gateway", "--gateway-id", "g2"]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    assert process.wait(30.0) == 0


async def test_a_killed_gateway_breaks_its_own_connections_and_nothing_else(up: Running, second: str) -> None:
    async with live(up) as clients:
        await whole(clients)
        await clients.until_ready(second)
        async with clients.open_load(RATE / 2, ISL, OSL, url=second):
            await asyncio.sleep(2.0)
            mine = [await clients.ask_http(ISL, 400) for _ in range(10)]
            await asyncio.sleep(2.0)
            killed_s = clients.now()
            clients.send("gateway", signal.SIGKILL)
            for asked in mine:
                await asked.done.wait()
            assert all(asked.broken for asked in mine)
            assert max(asked.ended_s for asked in mine) - killed_s < 1.0
            await asyncio.sleep(4.0)
        assert clients.verdict() == []
        assert sum(bool(asked.broken) for asked in clients.asked) == len(mine)
        assert not clients.failures()
        await clients.idle(5.0)
        await clients.until_ready(clients.url)


async def test_a_gateway_that_is_frozen_for_5_s_gives_every_answer_afterwards(up: Running) -> None:
    """Longer than its lease: workers have given its requests up meanwhile."""
    async with live(up) as clients:
        await whole(clients)
        async with clients.open_load(RATE, ISL, OSL):
            await asyncio.sleep(3.0)
            pid = clients.freeze("gateway")
            await asyncio.sleep(5.0)
            clients.thaw(pid)
            await asyncio.sleep(3.0)
        all_good(clients)
        assert max(asked.ended_s - asked.deadline_s for asked in clients.asked) < -20.0
        await clients.idle()


# --- store, broker, control -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store", "planner", "forecaster"])
async def test_a_killed_store_planner_or_forecaster_costs_no_request(up: Running, name: str) -> None:
    async with live(up) as clients:
        await whole(clients)
        async with clients.open_load(RATE, ISL, OSL):
            await asyncio.sleep(2.0)
            pid = clients.send(name, signal.SIGKILL)
            await clients.until(lambda: _new_pid(up, name, pid), 10.0, f"a new {name}")
            await asyncio.sleep(3.0)
        all_good(clients)
        await clients.idle()


def _new_pid(up: Running, name: str, old: int) -> bool:
    process = up.state.process(name)
    return process is not None and process.pid != old


async def test_a_planner_that_was_killed_leads_again_with_a_higher_epoch_and_the_same_pins(up: Running) -> None:
    async with live(up) as clients:
        await whole(clients)
        role = clients.cluster.states["w1"].role
        await clients.set_role("w1", OTHER[role], "overlap")
        before = clients.cluster.states["w1"].epoch
        pid = clients.send("planner", signal.SIGKILL)
        await clients.until(lambda: _new_pid(up, "planner", pid), 10.0, "a new planner")
        await clients.until_planner(workers=4)
        reply = await clients.roles("list")
        assert {row.worker_id: row.pinned for row in reply.workers}["w1"] == OTHER[role]
        await clients.set_role("w1", role, "overlap")
        assert clients.cluster.states["w1"].epoch >> 32 > before >> 32
        await clients.roles("unpin", "w1")


async def test_a_frozen_store_costs_no_request(up: Running) -> None:
    async with live(up) as clients:
        await whole(clients)
        async with clients.open_load(RATE / 2, ISL, OSL):
            await asyncio.sleep(2.0)
            pid = clients.freeze("store")
            await asyncio.sleep(3.0)
            clients.thaw(pid)
            await asyncio.sleep(2.0)
        all_good(clients)
        await clients.idle()


async def test_a_broker_restart_with_200_running_streams_prefills_nothing_again(up: Running) -> None:
    async with live(up) as clients:
        await whole(clients)
        lost, missed = _attempts_lost(clients), clients.kv_misses()
        asked = [await clients.ask_http(100, 400, stream=n < 40) for n in range(200)]
        decoding = lambda: sum(state.decoding for state in clients.cluster.states.values())  # noqa: E731
        await clients.until(lambda: decoding() == 200, 40.0, "200 streams")
        had = sum(len(x.tokens) for x in asked)
        pid = clients.send("nats", signal.SIGKILL)
        await clients.until(lambda: _new_pid(up, "nats", pid), 10.0, "a new broker")
        for x in asked:
            await x.done.wait()
        all_good(clients)
        print(f"\n{had} tokens had come when the broker died; attempts lost {_attempts_lost(clients) - lost}")
        assert _attempts_lost(clients) == lost
        assert clients.kv_misses() == missed
        await clients.idle()


def _attempts_lost(clients: Live) -> int:
    log = clients.log("gateway")
    return len(re.findall(r"attempt_lost|work_not_delivered|worker_lost", log))


async def test_a_broker_that_is_frozen_for_5_s_costs_no_request(up: Running) -> None:
    async with live(up) as clients:
        await whole(clients)
        async with clients.open_load(RATE, ISL, OSL):
            await asyncio.sleep(3.0)
            pid = clients.freeze("nats")
            await asyncio.sleep(5.0)
            clients.thaw(pid)
            await asyncio.sleep(4.0)
        all_good(clients)
        await clients.idle()


# --- the end --------------------------------------------------------------------------------------------------------


async def test_nothing_lives_5_s_after_the_supervisor_was_killed_under_load(up: Running) -> None:
    """The last one that uses the cluster."""
    async with live(up) as clients:
        await whole(clients)
        asked = [await clients.ask_http(ISL, 1000, timeout_s=20.0) for _ in range(20)]
        await asyncio.sleep(1.0)
        up.note()
        up.process.kill()
        killed_s = time.monotonic()
        assert await asyncio.to_thread(wait_until, lambda: up.left() == [], 5.0), up.left()
        print(f"\nall gone {time.monotonic() - killed_s:.2f} s after the supervisor")
        for x in asked:
            await asyncio.wait_for(x.done.wait(), 5.0)
        assert all(x.broken for x in asked)
