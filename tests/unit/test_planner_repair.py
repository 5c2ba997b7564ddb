"""When an empty pool takes a worker from the other, and when it waits."""

from dopd_planner.core import repair
from dopd_proto.base import Role
from dopd_proto.telemetry import Phase, WorkerState


def state(worker_id: str, role: Role, phase: Phase = "serving", running: int = 0) -> WorkerState:
    return WorkerState(
        worker_id=worker_id, incarnation=worker_id, role=role, epoch=0, phase=phase, model="m", kv_domain="local",
        sent_s=0.0, lease_s=3.0, running=running,
    )  # fmt: skip


def states(*all_of_them: WorkerState) -> dict[str, WorkerState]:
    return {each.worker_id: each for each in all_of_them}


def test_an_empty_pool_takes_the_least_busy_worker_of_the_other() -> None:
    assert repair(states(state("w1", "decode", running=3), state("w2", "decode")), {}, {}) == {"w2": "prefill"}


def test_a_pool_whose_worker_is_starting_waits_for_it() -> None:
    known = states(state("w1", "prefill", "starting"), state("w2", "decode"), state("w3", "decode"))
    assert repair(known, {}, {}) == {}


def test_a_pool_whose_worker_has_failed_does_not_wait_for_it() -> None:
    known = states(state("w1", "prefill", "failed"), state("w2", "decode"), state("w3", "decode"))
    assert repair(known, {}, {}) == {"w2": "prefill"}


def test_the_last_worker_stays_where_it_is() -> None:
    assert repair(states(state("w1", "decode")), {}, {}) == {}


def test_a_pinned_worker_is_left_alone() -> None:
    known = states(state("w1", "decode"), state("w2", "decode"))
    assert repair(known, {"w1": "decode"}, {}) == {}


def test_a_change_under_way_counts() -> None:
    known = states(state("w1", "decode"), state("w2", "decode"), state("w3", "decode"))
    assert repair(known, {}, {"w1": "prefill"}) == {}
