"""What breaks under a planner that moves roles, in virtual time. In every case: no request is lost, the planner says in
words why it does what it does, also nothing, and roles end up as it has decided."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from dopd.bus.memory import Fault
from dopd.config import Config
from dopd.obs.explain import REASONS
from dopd.policy import forecaster_of
from dopd.runtime.clock import Runtime
from dopd.runtime.virtual import VirtualRuntime
from dopd.slo import Slo
from dopd_forecaster.service import Forecaster
from dopd_gateway.stream import Inbound
from dopd_loadgen.sim import Stage
from dopd_proto.base import Message
from dopd_proto.control import DecisionRecord, RoleChange
from dopd_proto.request import Sampling
from dopd_proto.subjects import ROLE_CHANGE
from tests.house import CONFIG, House, run_house
from tests.planned_runs import PART_S, PLANNED, Looked, planned_run

LEASE_S, ROUND_S = 5.0, 0.5


def held_up(looked: Looked) -> None:
    """What all cases have in common."""
    assert looked.run is not None
    assert looked.run.records and not [one for one in looked.run.records if one.failure]
    assert looked.records and {record.reason for record in looked.records} <= REASONS.keys()
    last, roles = looked.records[-1], looked.run.roles[-1]
    assert (roles.n_prefill, roles.n_decode) == split_after(last), "roles are not as decided"
    assert min(roles.n_prefill, roles.n_decode) >= 1


def split_after(record: DecisionRecord) -> tuple[int, int]:
    """Once its changes are made."""
    made = [c for c in record.changes if not c.outcome.startswith("refused")]
    more = sum((c.role == "prefill") - (c.before == "prefill") for c in made)
    return record.prefill + more, record.decode - more


def between(looked: Looked, start_s: float, end_s: float) -> list[DecisionRecord]:
    return [record for record in looked.records if start_s <= record.at_s <= end_s]


async def until(what: Callable[[], Any], limit_s: float = 60.0) -> None:
    """Looks every 10 ms."""
    async with asyncio.timeout(limit_s):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def commands(verdict: Any) -> Fault:
    """A fault that hits role commands alone."""

    def fault(_: str, message: Message) -> Any:
        if not isinstance(message, RoleChange):
            return None
        return verdict(message) if callable(verdict) else verdict

    return fault


@pytest.fixture(scope="module")
def plain() -> Looked:
    return planned_run()


def test_nothing_breaks(plain: Looked) -> None:
    held_up(plain)
    assert len(plain.moves) >= 3


# --- forecaster -----------------------------------------------------------------------------------------------------


def test_a_forecaster_that_dies_is_missed_by_name_and_its_successor_is_heard() -> None:
    """Until then queues alone are looked at, roles are moved one at a time, and the record says what is lacking."""

    async def die(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        await asyncio.sleep(PART_S - 2)
        await cluster.forecaster.stop()
        await asyncio.sleep(22.0)
        assert cluster.policy is not None
        config = forecaster_of(cluster.policy, cluster.config)
        bus = cluster.broker.connect("forecaster")
        cluster.forecaster = Forecaster(bus, cluster.runtime, config, *cluster.profiles)
        await cluster.forecaster.start()

    looked = planned_run(die)
    held_up(looked)
    blind = between(looked, PART_S + 5, PART_S + 20)
    assert blind and all("forecaster" in record.needs for record in blind)
    assert blind[0].reason == "forecast_stale"
    assert all(abs(split_after(r)[0] - r.prefill) <= 1 for r in blind)
    after = between(looked, PART_S + 35, 200)
    assert after and not any("forecaster" in record.needs for record in after)


# --- planner --------------------------------------------------------------------------------------------------------


def test_while_there_is_no_planner_roles_stay_and_its_successor_goes_on() -> None:
    seen: list[int] = []

    async def die(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        await asyncio.sleep(PART_S)
        seen.append(prefills(stage))
        cluster.kill_planner("planner")
        await asyncio.sleep(8.0)
        seen.append(prefills(stage))
        cluster.planner = await cluster.add_planner("planner")
        await until(lambda: cluster.planner.leading)

    looked = planned_run(die)
    held_up(looked)
    assert seen[0] == seen[1]
    assert {record.term for record in between(looked, PART_S + 8, 200)} == {2}
    assert between(looked, PART_S + 8, 200)[0].reason == "listening"
    assert any(record.term == 2 for record in looked.moves)


def test_a_second_planner_waits_in_the_wings_and_leads_when_the_first_falls_silent() -> None:
    async def die(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        second = await cluster.add_planner("planner2")
        await asyncio.sleep(PART_S)
        assert cluster.planner.leading and not second.leading
        cluster.kill_planner("planner")
        await asyncio.sleep(LEASE_S + 2 * ROUND_S)
        assert second.leading

    looked = planned_run(die)
    held_up(looked)
    assert {record.planner_id for record in looked.records if record.term == 1} == {"planner-1"}
    assert {record.planner_id for record in looked.records if record.term == 2} == {"planner2-1"}
    # It has listened all along, so it need not listen first.
    assert "listening" not in {record.reason for record in looked.records if record.term == 2}


def test_a_leader_that_was_frozen_is_refused_what_it_still_wants() -> None:
    """It thaws, does not know that another leads, and repeats its command: the epoch is of an old term."""
    seen: list[Any] = []

    async def freeze(stage: Stage, looked: Looked) -> None:
        cluster, first = stage.cluster, stage.cluster.planner
        cluster.broker.fault = commands("drop")
        await until(first.wishes.leaving)
        (wish, *_) = first.wishes
        cluster.kill_planner("planner")
        cluster.broker.fault = None
        second = cluster.planner = await cluster.add_planner("planner2")
        await until(lambda: cluster.workers[wish.worker_id].role.role == wish.role)
        role = cluster.workers[wish.worker_id].role
        stale = replace(wish, role="decode" if wish.role == "prefill" else "prefill")
        cluster.broker.connect("thawed").publish(ROLE_CHANGE.at(worker_id=wish.worker_id), stale.command())
        await asyncio.sleep(0.1)
        seen.extend([role, cluster.workers[wish.worker_id].role, second.leading])

    looked = planned_run(freeze)
    held_up(looked)
    before, after, leading = seen
    assert leading and before.epoch >> 32 == 2 and (after.role, after.epoch) == (before.role, before.epoch)


class Broken:
    """A policy's planner that fails whenever it is asked, from its third round on."""

    def initial(self) -> int:
        return 0

    def plan(self, state: int, *seen: Any) -> Any:
        raise ZeroDivisionError("no workers")


def test_a_policy_that_fails_holds_roles_and_the_record_says_so() -> None:
    looked = planned_run(policy=replace(PLANNED, planner=Broken))
    assert looked.run is not None
    assert not [one for one in looked.run.records if one.failure]
    assert {record.reason for record in looked.records} == {"listening", "policy_failed"}
    assert not looked.moves and "ZeroDivisionError" in looked.records[-1].needs


def prefills(stage: Stage) -> int:
    return sum(worker.role.role == "prefill" for worker in stage.cluster.workers.values())


# --- gateway, broker, ledger ----------------------------------------------------------------------------------------


def test_a_gateway_that_is_restarted_is_counted_anew_and_the_planner_goes_on() -> None:
    """Its clients' connections break; all other requests get their exact tokens."""

    async def restart(house: House) -> None:
        await asyncio.sleep(8.0)
        house.kill_gateway("g2")
        await asyncio.sleep(1.0)
        await house.cluster.add_gateway("g2")
        await asyncio.sleep(6.0)
        planner = house.cluster.planner
        forecast = planner.heard.forecast
        assert planner.leading and forecast is not None and forecast.start_s > 12.0 and forecast.requests_per_s > 2.0
        told = planner.history.last(100)
        assert told and {record.reason for record in told} <= REASONS.keys()

    run_house(restart, 1, gateways=2, requests=120, rate=8.0, config=planned_house())


def planned_house() -> Config:
    """The house with a planner that moves roles, and windows of a second."""
    return msgspec.structs.replace(
        CONFIG,
        policy=msgspec.structs.replace(CONFIG.policy, name="tests.planned_runs:PLANNED"),
        forecaster=msgspec.structs.replace(CONFIG.forecaster, bin_s=1.0, horizons_s=(1.0,)),
    )


@pytest.mark.parametrize("away_s", [1.0, 10.0])
def test_while_the_broker_and_its_ledger_are_away_roles_are_held_and_then_it_goes_on(away_s: float) -> None:
    seen: list[int] = []

    async def restart(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        await asyncio.sleep(PART_S)
        seen.append(prefills(stage))
        cluster.broker.down()
        cluster.ledger.lost()
        await asyncio.sleep(away_s)
        seen.append(prefills(stage))
        cluster.broker.up()
        cluster.ledger.found()

    looked = planned_run(restart)
    held_up(looked)
    assert seen[0] == seen[1]
    back_s = PART_S + away_s
    assert not between(looked, PART_S + 0.1, back_s)
    heard = between(looked, back_s, back_s + LEASE_S + 3)
    assert heard and heard[0].reason == "listening", "silence says nothing yet"
    assert [record for record in looked.moves if record.at_s > back_s + LEASE_S]


def test_without_the_ledger_nothing_is_commanded_and_afterwards_it_goes_on() -> None:
    seen: list[RoleChange] = []

    async def lose(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        await asyncio.sleep(PART_S)
        cluster.ledger.lost()
        await asyncio.sleep(2.0)
        assert not cluster.planner.leading
        cluster.broker.fault = commands(seen.append)
        await asyncio.sleep(10.0)
        cluster.ledger.found()
        cluster.broker.fault = None

    looked = planned_run(lose)
    held_up(looked)
    assert not seen and not between(looked, PART_S + 2, PART_S + 11.9)
    assert [record for record in looked.moves if record.at_s > PART_S + 11.9]


def test_a_ledger_lost_between_decision_and_outcome_still_hears_of_the_outcome() -> None:
    async def lose(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        cluster.broker.fault = commands(lambda _: 1.0)
        await until(cluster.planner.wishes.leaving)
        (wish, *_) = cluster.planner.wishes
        looked.worker_id = wish.worker_id
        cluster.ledger.lost()
        await until(lambda: cluster.workers[wish.worker_id].role.role == wish.role)
        cluster.broker.fault = None
        await asyncio.sleep(3.0)
        cluster.ledger.found()

    looked = planned_run(lose)
    held_up(looked)
    first = looked.moves[0]
    assert [c.outcome for c in first.changes if c.worker_id == looked.worker_id] == ["drained"]


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back_s", [0.5, 8.0])
def test_a_worker_lost_during_its_flip_is_told_as_lost_and_another_takes_its_place(back_s: float) -> None:
    """It comes back, sooner or later than its lease, in the role it was started with."""

    async def lose(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        cluster.broker.fault = commands("drop")
        await until(cluster.planner.wishes.leaving)
        (wish, *_) = cluster.planner.wishes
        looked.worker_id = wish.worker_id
        cluster.kill_worker(wish.worker_id)
        cluster.broker.fault = None
        await asyncio.sleep(back_s)
        await cluster.add_worker(wish.worker_id, "decode")

    looked = planned_run(lose)
    assert looked.run is not None
    held_up(looked)
    first = looked.moves[0]
    assert [c.outcome for c in first.changes if c.worker_id == looked.worker_id] == ["worker_lost"]
    assert looked.moves[1].at_s > first.at_s and looked.run.roles[-1].n_prefill + looked.run.roles[-1].n_decode == 4


def test_a_worker_that_never_drains_serves_its_new_role_beside_the_old() -> None:
    """Whoever decodes on it stays there; the change counts once new work is taken, and is told as not drained."""

    reading: list[asyncio.Task[None]] = []

    async def hold(stage: Stage, looked: Looked) -> None:
        sampling = Sampling(max_tokens=30_000, temperature=0.0, ignore_eos=True)
        for number in range(4):
            stream = stage.cluster.gateway.open(Inbound([3 + number] * 50, sampling, Slo(), 1e6))
            reading.append(asyncio.create_task(read(stream)))

    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    looked = planned_run(hold)
    held_up(looked)
    (first, *_) = (record for record in looked.moves if any(c.role == "prefill" for c in record.changes))
    stuck = [c for record in looked.moves for c in record.changes if c.outcome == "accepting"]
    assert stuck and all(c.drained_s is None and c.accepting_s is not None for c in stuck)
    assert all(c.accepting_s is not None and c.accepting_s < 1.0 for c in first.changes)


def test_a_drain_that_waits_for_ever_times_out_and_a_pin_is_then_carried_out_at_once() -> None:
    """A person asked for `wait` on a worker that never gets rid of its work."""

    async def wish(house: House) -> None:
        house.ask(house.cluster.gateway, 100, 6000, timeout_s=200.0)
        await house.until(lambda: any(e._core.pool.used for e in house.cluster.engines.values()))
        await asyncio.sleep(1.0)
        worker_id = house.worker_with("decode")
        told = await house.set_role(worker_id, "prefill", "wait", timeout_s=40.0)
        assert "did not show drained" in told
        assert await house.until(lambda: house.cluster.workers[worker_id].role.role == "prefill", 5.0)
        person, pin = [r for r in house.cluster.planner.history.last(100) if r.why in ("person", "pin")]
        assert person.changes[0].outcome == "timed_out" and pin.changes[0].drain == "overlap"

    run_house(wish, 0, requests=0)


# --- commands -------------------------------------------------------------------------------------------------------


def late(seed: int) -> Callable[[RoleChange], float]:
    rng = random.Random(f"late/{seed}")
    return lambda _: rng.uniform(0.0, 4.0)


def lossy(seed: int) -> Callable[[RoleChange], Any]:
    rng = random.Random(f"lossy/{seed}")
    return lambda _: "drop" if rng.random() < 0.7 else None


@pytest.mark.parametrize("how", ["lost", "twice", "late"])
@pytest.mark.parametrize("seed", range(2))
def test_commands_lost_doubled_or_overtaken_change_nothing_in_the_end(seed: int, how: str) -> None:
    verdict = {"lost": lossy(seed), "twice": "duplicate", "late": late(seed)}[how]

    async def disturb(stage: Stage, looked: Looked) -> None:
        stage.cluster.broker.fault = commands(verdict)

    looked = planned_run(disturb)
    held_up(looked)
    outcomes = {change.outcome for record in looked.moves[:-1] for change in record.changes}
    assert outcomes <= {"accepting", "drained"}


# --- clocks ---------------------------------------------------------------------------------------------------------


class Shifted:
    """The clock of a machine that was set: everything that is started on it afterwards is so far ahead."""

    def __init__(self, runtime: Runtime, ahead_s: float) -> None:
        self._runtime, self._ahead_s = runtime, ahead_s
        self.rng, self.new_id, self.compute = runtime.rng, runtime.new_id, runtime.compute

    def now(self) -> float:
        return self._runtime.now() + self._ahead_s

    def loop_time(self, when_s: float) -> float:
        return self._runtime.loop_time(when_s - self._ahead_s)


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_planner_on_a_machine_whose_clock_was_set_moves_roles_all_the_same(ahead_s: float) -> None:
    """It is started anew with another clock than workers, gateways and forecaster have, and takes over."""

    async def jump(stage: Stage, looked: Looked) -> None:
        cluster, plain = stage.cluster, stage.cluster.runtime
        await asyncio.sleep(8.0)
        cluster.kill_planner("planner")
        cluster.runtime = Shifted(plain, ahead_s)
        cluster.planner = await cluster.add_planner("planner")
        cluster.runtime = plain

    looked = planned_run(jump)
    held_up(looked)
    moves = [record for record in looked.moves if record.term == 2]
    assert len(moves) >= 2 and all(abs(record.at_s - ahead_s) < 200 for record in moves)
    changes = [change for record in moves[:-1] for change in record.changes]
    assert {change.outcome for change in changes} <= {"accepting", "drained"}
    assert all(0 <= (change.accepting_s or 0.0) < 2.0 for change in changes)
    assert not any("forecaster" in record.needs for record in moves)


def test_a_clock_that_steps_while_a_process_runs_is_not_seen_by_it() -> None:
    """`VirtualRuntime` has one clock that never steps, as `RealRuntime` has: see tests/unit/test_clock.py."""
    assert Shifted(VirtualRuntime(0), 5.0).loop_time(5.0) == VirtualRuntime(0).loop_time(0.0)


# --- two at once ----------------------------------------------------------------------------------------------------


def test_two_people_who_would_empty_a_pool_together_are_not_both_obeyed() -> None:
    async def wish(house: House) -> None:
        house.cluster.ledger.delay_s = 0.05
        told = await asyncio.gather(*(house.set_role(w, "decode", "overlap") for w in ("w1", "w2")))
        house.cluster.ledger.delay_s = 0.0
        assert sorted(bool(one) for one in told) == [False, True]
        assert "would leave no prefill worker" in max(told, key=len)
        assert house.cluster.planner.pins.roles == {}

    run_house(wish, 0)


# --- all at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_whatever_breaks_and_in_whatever_order_roles_end_as_decided_and_no_request_is_lost(seed: int) -> None:
    async def chaos(stage: Stage, looked: Looked) -> None:
        rng, cluster = random.Random(f"chaos/{seed}"), stage.cluster
        for _ in range(6):
            await asyncio.sleep(rng.uniform(0.5, 6.0))
            kind, pause_s = rng.choice(["worker", "planner", "broker", "ledger", "commands"]), rng.uniform(0.1, 4.0)
            if kind == "worker":
                worker_id = rng.choice(sorted(cluster.workers))
                role = cluster.workers[worker_id].role.role
                cluster.kill_worker(worker_id)
                await asyncio.sleep(pause_s)
                await cluster.add_worker(worker_id, role)
            elif kind == "planner":
                cluster.kill_planner("planner")
                await asyncio.sleep(pause_s)
                cluster.planner = await cluster.add_planner("planner")
            elif kind == "broker":
                cluster.broker.down()
                await asyncio.sleep(pause_s)
                cluster.broker.up()
            elif kind == "ledger":
                cluster.ledger.lost()
                await asyncio.sleep(pause_s)
                cluster.ledger.found()
            else:
                cluster.broker.fault = commands(lossy(seed))
                await asyncio.sleep(pause_s)
                cluster.broker.fault = None

    looked = planned_run(chaos)
    held_up(looked)
    terms = [record.term for record in looked.records]
    assert terms == sorted(terms)
