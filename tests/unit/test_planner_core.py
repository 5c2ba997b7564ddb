"""Which role changes are refused, which empty pools are mended, and when a wish is done."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dopd_planner.core import POOLS, Wish, accepting, refusal, repair, rows, void
from dopd_proto.base import Role
from dopd_proto.telemetry import WorkerState

WISH = Wish("w1", "w1-1", "decode", "overlap", epoch=7, decision_id="d", sent_s=1.0, deadline_s=60.0)


def state(worker_id: str, role: Role, phase: str = "serving", **more: object) -> WorkerState:
    fields = {
        "incarnation": f"{worker_id}-1",
        "epoch": 1,
        "model": "m",
        "kv_domain": "a",
        "sent_s": 0.0,
        "lease_s": 3.0,
    }
    return WorkerState(worker_id=worker_id, role=role, phase=phase, **fields | more)  # type: ignore[arg-type]


def cluster(*workers: WorkerState) -> dict[str, WorkerState]:
    return {worker.worker_id: worker for worker in workers}


SPLIT = cluster(state("w1", "prefill"), state("w2", "prefill"), state("w3", "decode"))


def test_the_last_worker_of_a_pool_stays() -> None:
    assert refusal(SPLIT, {}, "w1", "decode") == ""
    assert "no decode worker" in refusal(SPLIT, {}, "w3", "prefill")
    assert refusal(SPLIT, {}, "w3", "mixed") == ""
    assert "no worker 'w9'" in refusal(SPLIT, {}, "w9", "prefill")


def test_a_worker_that_is_leaving_is_not_counted_so_two_cannot_go_at_once() -> None:
    assert "no prefill worker" in refusal(SPLIT, {"w2": "decode"}, "w1", "decode")


def test_one_that_is_coming_counts_only_when_it_is_there() -> None:
    assert "no decode worker" in refusal(SPLIT, {"w2": "decode"}, "w3", "prefill")


def test_one_that_does_not_serve_is_no_cover() -> None:
    workers = SPLIT | cluster(state("w2", "prefill", phase="stalled"))
    assert "no prefill worker" in refusal(workers, {}, "w1", "decode")


def test_a_mixed_worker_covers_both_pools() -> None:
    workers = cluster(state("w1", "prefill"), state("w2", "mixed"))
    assert refusal(workers, {}, "w1", "decode") == ""
    assert "no prefill worker" in refusal(workers, {"w1": "decode"}, "w2", "decode")


def test_the_present_role_is_never_refused() -> None:
    assert refusal(cluster(state("w1", "prefill")), {}, "w1", "prefill") == ""


def test_an_empty_pool_gets_the_worker_with_the_least_to_do() -> None:
    workers = cluster(state("w1", "decode", running=5), state("w2", "decode", running=1), state("w3", "decode"))
    assert repair(workers, {}, {}) == {"w3": "prefill"}
    assert repair(workers, {"w3": "decode"}, {}) == {"w2": "prefill"}
    assert repair(workers, {}, {"w1": "prefill"}) == {}
    assert repair(SPLIT, {}, {}) == {}


def test_the_only_worker_is_not_moved_to_and_fro() -> None:
    assert repair(cluster(state("w1", "decode")), {}, {}) == {}
    assert repair({}, {}, {}) == {}


def test_a_wish_has_come_true_when_the_worker_says_so() -> None:
    assert accepting(WISH, state("w1", "decode", epoch=7))
    assert not accepting(WISH, state("w1", "decode", epoch=6))
    assert not accepting(WISH, state("w1", "prefill", epoch=7))


def test_a_wish_is_void_when_its_worker_or_its_time_or_its_turn_has_gone() -> None:
    assert void(WISH, state("w1", "prefill"), 2.0) == ""
    assert void(WISH, None, 2.0) == void(WISH, state("w1", "prefill", incarnation="w1-2"), 2.0) == "worker_lost"
    assert void(WISH, state("w1", "prefill", epoch=8), 2.0) == "superseded"
    assert void(WISH, state("w1", "prefill"), 60.1) == "timed_out"


def test_a_repeated_command_is_the_same_command() -> None:
    assert WISH.command() == replace(WISH).command()
    assert (WISH.command().epoch, WISH.command().deadline_s) == (7, 60.0)


def test_the_table_shows_age_pins_and_memory() -> None:
    [row] = rows(cluster(state("w1", "decode", kv_used_tokens=1, kv_total_tokens=4)), {"w1": "decode"}, 2.5)
    assert (row.kv_usage, row.pinned, row.age_s) == (0.25, "decode", 2.5)


roles = st.sampled_from(["prefill", "decode", "mixed"])


@given(st.lists(roles, min_size=1, max_size=5), st.lists(st.tuples(st.integers(0, 4), roles), max_size=8))
def test_no_series_of_changes_that_were_not_refused_empties_a_pool(
    first: list[Role], asked: list[tuple[int, Role]]
) -> None:
    states = cluster(*(state(f"w{place}", role) for place, role in enumerate(first)))
    covered = [pool for pool in POOLS if any(role in (pool, "mixed") for role in first)]
    leaving: dict[str, Role] = {}
    for number, role in asked:
        worker_id = f"w{number}"
        if worker_id not in leaving and not refusal(states, leaving, worker_id, role):
            leaving[worker_id] = role
    for pool in covered:
        # In whatever order they flip: somebody belongs to the pool before and after.
        assert any({worker.role, leaving.get(w, worker.role)} <= {pool, "mixed"} for w, worker in states.items())


def test_a_worker_whose_engine_is_unlike_those_of_the_pool_keeps_its_role() -> None:
    workers = cluster(
        state("w1", "prefill", engine="tp1"),
        state("w2", "prefill", engine="tp1"),
        state("w3", "decode", engine="tp2"),
        state("w4", "decode", engine="tp2"),
    )
    assert refusal(workers, {}, "w1", "decode") == "its engine is 'tp1', that of decode worker w3 'tp2'"
    assert "'tp2'" in refusal(workers, {}, "w1", "mixed")
    gone = workers | cluster(state("w3", "decode", "failed"), state("w4", "decode", "failed"))
    assert refusal(gone, {}, "w1", "decode") == ""
    alike = {w: state(w, s.role, engine="tp1") for w, s in workers.items()}
    assert refusal(alike, {}, "w1", "decode") == ""
