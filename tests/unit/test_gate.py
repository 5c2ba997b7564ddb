"""Who may start in the next engine step."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dopd.policy.base import StepLimit, StepView, WaitingView
from dopd.policy.gate import MEMBER_WAIT_S, admissible

OPEN = StepLimit()


def one(job_id: str, **more: object) -> WaitingView:
    return replace(WaitingView(job_id, tokens=10, waited_s=0.0), **more)  # type: ignore[arg-type]


def member(job_id: str, batch_id: str = "b", batch_size: int = 2, **more: object) -> WaitingView:
    return one(job_id, batch_id=batch_id, batch_size=batch_size, **more)


def step(*waiting: WaitingView, decodes: int = 0, prefills: int = 0, alone: bool = False, most: int = 8) -> StepView:
    return StepView(decodes, 0, prefills, alone, waiting, 100, most)


def test_requests_start_in_the_order_of_arrival_while_there_is_room() -> None:
    view = step(one("a"), one("b"), one("c"), decodes=1, prefills=1, most=4)
    assert admissible(view, OPEN) == ["a", "b"]
    assert admissible(view, StepLimit(max_running=3)) == ["a"]
    assert admissible(view, StepLimit(max_running=99)) == ["a", "b"]
    assert admissible(view, StepLimit(max_running=0)) == []


def test_a_request_whose_kv_is_on_its_way_is_overtaken() -> None:
    assert admissible(step(one("a", ready=False), one("b")), OPEN) == ["b"]


def test_a_batch_waits_for_its_last_member_and_its_kv() -> None:
    assert admissible(step(member("a")), OPEN) == []
    assert admissible(step(member("a"), member("b", ready=False)), OPEN) == []
    assert admissible(step(member("a"), member("b")), OPEN) == ["a", "b"]


def test_a_batch_starts_as_one_where_its_first_member_stands() -> None:
    view = step(member("a"), one("x"), member("b"), one("y"))
    assert admissible(view, OPEN) == ["a", "b", "x", "y"]


def test_a_batch_is_not_cut_to_the_room_and_not_overtaken() -> None:
    assert admissible(step(member("a"), member("b"), one("x"), decodes=7), OPEN) == []


def test_a_lost_member_holds_the_others_up_only_for_a_while() -> None:
    assert admissible(step(member("a", waited_s=MEMBER_WAIT_S - 0.1)), OPEN) == []
    assert admissible(step(member("a", waited_s=MEMBER_WAIT_S)), OPEN) == ["a"]


def test_an_exclusive_batch_starts_without_a_prefill_beside_it_and_lets_none_in() -> None:
    alone = [member("a", exclusive=True), member("b", exclusive=True)]
    assert admissible(step(*alone, one("x"), decodes=2), OPEN) == ["a", "b"]
    assert admissible(step(*alone, one("x"), prefills=1), OPEN) == []
    assert admissible(step(one("x"), alone=True), OPEN) == []


def test_a_closed_gate_lets_nobody_in() -> None:
    assert admissible(step(one("a")), StepLimit(gate="closed")) == []


def test_a_gate_for_one_batch_lets_the_first_in_and_no_other() -> None:
    first, second = [member("a"), member("b")], [member("c", "c"), member("d", "c")]
    limit = StepLimit(gate="batch")
    assert admissible(step(*first, *second), limit) == ["a", "b"]
    assert admissible(step(member("a", batch_size=3), *second), limit) == ["c", "d"]
    assert admissible(step(one("x"), *first), limit) == ["x"]


waiting_lists = st.lists(
    st.builds(
        WaitingView, job_id=st.uuids().map(str), tokens=st.just(1), waited_s=st.sampled_from([0.0, MEMBER_WAIT_S]),
        ready=st.booleans(), batch_id=st.sampled_from(["", "b", "c"]), batch_size=st.just(3), exclusive=st.booleans(),
    ),
    max_size=8, unique_by=lambda view: view.job_id,
)  # fmt: skip


@given(waiting_lists, st.integers(0, 4), st.integers(0, 4), st.sampled_from(["open", "batch", "closed"]))
def test_nobody_starts_twice_or_beyond_the_room_or_without_the_batch(
    waiting: list[WaitingView], decodes: int, prefills: int, gate: str
) -> None:
    limit = StepLimit(gate=gate)  # type: ignore[arg-type]
    admitted = admissible(step(*waiting, decodes=decodes, prefills=prefills), limit)
    assert len(admitted) == len(set(admitted)) <= max(0, 8 - decodes - prefills)
    views = {view.job_id: view for view in waiting}
    for batch_id in {views[job_id].batch_id for job_id in admitted} - {""}:
        assert {v.job_id for v in waiting if v.batch_id == batch_id} <= set(admitted)


def test_a_batch_that_can_never_fit_starts_in_part_when_nothing_runs() -> None:
    crowd = [member(name, batch_size=4) for name in "abcd"]
    assert admissible(step(*crowd, most=3), OPEN) == ["a", "b", "c"]
    assert admissible(step(*crowd, decodes=1, most=3), OPEN) == []
    assert admissible(step(*crowd, most=8), StepLimit(max_running=0)) == []
