"""The planner of `dopd` in whole virtual clusters: roles follow the load, and the ledger tells why."""

import asyncio

import pytest

from dopd.bus import Bus
from dopd.obs.explain import table, words
from dopd_loadgen.sim import Stage
from dopd_proto.base import Message
from dopd_proto.control import DecisionsReply, DecisionsRequest, RoleChange
from dopd_proto.subjects import DECISIONS
from tests.planned_runs import PART_S, PARTS, Looked, planned_run

LEAST_RECORDS = 3


def served(looked: Looked) -> bool:
    assert looked.run is not None
    return bool(looked.run.records) and not [record for record in looked.run.records if record.failure]


@pytest.fixture(scope="module")
def plain() -> Looked:
    async def ask(stage: Stage, looked: Looked) -> None:
        await asyncio.sleep(50.0)
        bus: Bus = stage.cluster.broker.connect("person")
        looked.replies = [
            await bus.request(DECISIONS.at(), request, (DecisionsReply,), timeout_s=5.0)
            for request in (DecisionsRequest(limit=2), DecisionsRequest(decision_id="decision-2"))
        ]

    return planned_run(ask)


def test_roles_follow_the_load_and_no_request_fails(plain: Looked) -> None:
    assert served(plain)
    assert len(PARTS) == 3 and plain.run is not None
    by_part = [[c.n_prefill for c in plain.run.roles if c.at_s <= (n + 1) * PART_S - 1][-1] for n in range(3)]
    assert by_part[0] == 3 > by_part[1] < by_part[2]
    assert all(count.n_prefill + count.n_decode == 4 for count in plain.run.roles)


def test_every_decision_is_recorded_with_what_it_came_from_and_what_came_of_it(plain: Looked) -> None:
    assert len(plain.moves) >= LEAST_RECORDS
    for record in plain.moves[:-1]:
        assert record.reason.startswith(("grow", "emergency", "rebalance")) and record.binding
        assert record.inputs["requests_per_s"] > 0 and len(record.alternatives) == 3
        assert record.forecast is not None and record.forecast.quantile_levels
        for change in record.changes:
            assert change.outcome in ("accepting", "drained") and change.accepting_s is not None
            assert (change.outcome == "drained") == (change.drained_s is not None)
            assert 0 <= change.accepting_s <= (change.drained_s or 60.0)
            assert change.epoch >> 32 == record.term == 1
    assert {change.outcome for record in plain.moves[:2] for change in record.changes} == {"drained"}
    changed = sum(len(record.changes) for record in plain.moves)
    assert changed == len(plain.prefill) - 1


def test_rounds_that_change_nothing_leave_few_records(plain: Looked) -> None:
    calm = [record for record in plain.records if not record.changes]
    assert all(record.reason for record in plain.records)
    assert len(calm) <= 60 / 5
    assert max(len(payload) for payload in plain.store.logs["decisions"]) < 4000  # type: ignore[union-attr]


def test_decisions_can_be_asked_for_and_told(plain: Looked) -> None:
    last, first = plain.replies
    assert len(last.decisions) == 2 and [record.decision_id for record in first.decisions] == ["decision-2"]
    told = words(first.decisions[0])
    for part in ("2 prefill and 2 decode workers > 3P1D", "prefill_work", "within the targets", "drained", "90%"):
        assert part in told
    assert "2P2D > 3P1D" in table(plain.records)


def test_the_same_run_decides_the_same(plain: Looked) -> None:
    assert planned_run().records == plain.records


def test_a_dry_run_plans_and_records_and_commands_nothing() -> None:
    looked = planned_run(dry_run=True)
    assert served(looked) and looked.prefill == [2]
    assert looked.moves and all(record.dry_run for record in looked.records)
    assert {change.outcome for record in looked.moves for change in record.changes} == {""}
    assert len(looked.records) <= 60 / 5 + 1


def test_a_planner_that_dies_in_the_middle_of_a_change_leaves_it_to_the_next_one() -> None:
    """Its commands are lost. The next one has a higher epoch, commands the same change and does not decide it again."""

    async def die(stage: Stage, looked: Looked) -> None:
        cluster = stage.cluster
        cluster.broker.fault = _commands_are_lost
        while not cluster.planner.wishes.leaving():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        looked.worker_id = next(iter(cluster.planner.wishes)).worker_id
        cluster.kill_planner("planner")
        assert cluster.workers[looked.worker_id].role.role == "decode"
        cluster.broker.fault = None
        await cluster.add_planner("planner")

    looked = planned_run(die)
    assert served(looked)
    first = looked.moves[0]
    (change,) = first.changes
    assert (first.term, change.worker_id, change.outcome) == (1, looked.worker_id, "drained")
    assert change.accepting_s is not None and change.accepting_s > 5.0, "a lease must lapse"
    again = [record for record in looked.moves[1:] if record.at_s < first.at_s + change.accepting_s + 1.0]
    assert not again
    assert {record.term for record in looked.records if record.at_s > first.at_s} == {2}


def _commands_are_lost(subject: str, message: Message) -> str | None:
    return "drop" if isinstance(message, RoleChange) else None


def test_without_a_forecaster_queues_decide_and_the_records_say_so() -> None:
    async def die(stage: Stage, looked: Looked) -> None:
        await asyncio.sleep(2.0)
        await stage.cluster.forecaster.stop()

    looked = planned_run(die)
    assert served(looked)
    calm = [record.reason for record in looked.records if not record.changes]
    assert calm[0] == "listening" and set(calm[1:]) <= {"no_forecast", "settling", "cooldown"}
    assert looked.moves and all(record.reason.startswith("emergency") for record in looked.moves)
    assert all(record.forecast is None and "forecaster" in record.needs for record in looked.moves)
