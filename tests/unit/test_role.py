"""What a `RoleChange` does to a worker, in all three ways to drain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.worker.role import Kind, RoleState, change, refusal, settle
from dopd_proto.base import DrainMode, Role
from dopd_proto.control import RoleChange

PREFILL = RoleState("prefill", epoch=3)


def command(
    role: Role = "decode", drain: DrainMode = "overlap", epoch: int = 4, deadline_s: float = 60.0
) -> RoleChange:
    return RoleChange(
        worker_id="w1", incarnation="w1-1", role=role, epoch=epoch, decision_id=f"d{epoch}", drain=drain,
        deadline_s=deadline_s, sent_s=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("drain", ["overlap", "migrate"])
def test_without_waiting_the_role_flips_at_once_and_drains_beside(drain: DrainMode) -> None:
    state = change(PREFILL, command(drain=drain), has_work=True, now_s=10.0)
    assert (state.role, state.epoch, state.decision_id, state.accepting_at_s) == ("decode", 4, "d4", 10.0)
    assert state.draining
    assert settle(state, {"prefill", "decode"}, 11.0) is state
    assert settle(state, {"decode"}, 12.0).drained_at_s == 12.0


def test_waiting_keeps_the_role_until_the_work_in_hand_is_gone() -> None:
    state = change(PREFILL, command(drain="wait"), has_work=True, now_s=10.0)
    assert (state.role, state.epoch, state.next_role, state.draining) == ("prefill", 4, "decode", True)
    assert settle(state, {"prefill"}, 11.0) is state
    state = settle(state, set(), 12.0)
    assert (state.role, state.next_role, state.accepting_at_s, state.drained_at_s) == ("decode", None, 12.0, 12.0)


def test_waiting_for_nothing_flips_at_once() -> None:
    state = change(PREFILL, command(drain="wait"), has_work=False, now_s=10.0)
    assert (state.role, state.accepting_at_s) == ("decode", 10.0)
    assert settle(state, set(), 10.0).drained_at_s == 10.0


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_a_stale_or_repeated_command_changes_nothing(epoch: int) -> None:
    assert change(PREFILL, command(epoch=epoch), has_work=False, now_s=1.0) is PREFILL


def test_a_command_after_its_deadline_changes_nothing() -> None:
    assert change(PREFILL, command(deadline_s=5.0), has_work=False, now_s=5.1) is PREFILL
    assert change(PREFILL, command(deadline_s=5.0), has_work=False, now_s=5.0).role == "decode"


def test_a_command_for_the_present_role_only_moves_the_epoch_and_ends_a_wait() -> None:
    waiting = change(PREFILL, command(drain="wait"), has_work=True, now_s=1.0)
    state = change(waiting, command(role="prefill", epoch=5), has_work=True, now_s=2.0)
    assert (state.role, state.epoch, state.next_role, state.drained_at_s) == ("prefill", 5, None, 2.0)


def test_a_newer_command_overrules_a_wait() -> None:
    waiting = change(PREFILL, command(drain="wait"), has_work=True, now_s=1.0)
    state = change(waiting, command(role="mixed", epoch=5), has_work=True, now_s=2.0)
    assert (state.role, state.next_role) == ("mixed", None)
    assert settle(state, {"prefill", "decode"}, 3.0).drained_at_s == 3.0


def test_a_worker_that_does_not_drain_settles_nothing() -> None:
    assert settle(PREFILL, {"decode"}, 9.0) is PREFILL


def test_work_of_another_role_is_refused_unless_it_was_placed_before_the_change_or_nobody_else_can() -> None:
    assert refusal(PREFILL, "prefill", 3, False) == ""
    assert refusal(PREFILL, "decode", 3, False) == "wrong_role"
    assert refusal(PREFILL, "decode", 2, False) == ""
    assert refusal(PREFILL, "decode", 3, True) == ""
    assert refusal(RoleState("mixed"), "prefill", 0, False) == refusal(RoleState("mixed"), "decode", 0, False) == ""


def test_a_worker_that_waits_takes_nothing_new_of_either_kind() -> None:
    waiting = change(PREFILL, command(drain="wait"), has_work=True, now_s=1.0)
    assert refusal(waiting, "prefill", 4, False) == refusal(waiting, "decode", 4, False) == "draining"
    assert refusal(waiting, "prefill", 3, False) == ""


roles = st.sampled_from(["prefill", "decode", "mixed"])
commands = st.builds(
    command,
    roles,
    st.sampled_from(["overlap", "migrate", "wait"]),
    st.integers(0, 12),
    st.floats(0, 20),
)
events = st.lists(st.one_of(commands, st.frozensets(st.sampled_from(["prefill", "decode"]))), max_size=12)


@given(roles, events)
def test_epochs_only_grow_and_an_empty_worker_has_drained(
    first: Role, happens: list[RoleChange | frozenset[Kind]]
) -> None:
    state, has_work = RoleState(first), True
    for now_s, event in enumerate(happens):
        before = state
        if isinstance(event, RoleChange):
            state = change(state, event, has_work, float(now_s))
            assert state is before or (state.epoch == event.epoch > before.epoch and now_s <= event.deadline_s)
        else:
            has_work = bool(event)
            state = settle(state, set(event), float(now_s))
            assert event or not state.draining
        assert state.next_role is None or state.draining
        assert state.accepting_at_s <= now_s
    state = settle(state, set(), 99.0)
    assert not state.draining and state.next_role is None


# --- roles that take time to start ------------------------------------------------------------------------------------


def away() -> RoleState:
    """Commanded at 10 with work in hand until 12, ready at 57."""
    leaving = change(PREFILL, command(), has_work=True, now_s=10.0, start_s=45.0)
    assert (leaving.role, leaving.next_role, leaving.ready_at_s) == ("prefill", "decode", None)
    assert settle(leaving, {"prefill"}, 11.0, 45.0) is leaving
    return settle(leaving, set(), 12.0, 45.0)


def test_a_role_that_takes_time_to_start_begins_after_the_old_work_and_its_start() -> None:
    state = away()
    assert (state.role, state.ready_at_s, state.draining) == ("prefill", 57.0, True)
    assert settle(state, set(), 56.9, 45.0) is state
    state = settle(state, set(), 57.0, 45.0)
    assert (state.role, state.next_role, state.ready_at_s) == ("decode", None, None)
    assert (state.accepting_at_s, state.drained_at_s) == (57.0, 57.0)


def test_without_work_in_hand_a_start_begins_at_the_command() -> None:
    state = change(PREFILL, command(), has_work=False, now_s=10.0, start_s=45.0)
    assert settle(state, set(), 10.0, 45.0).ready_at_s == 55.0


def test_a_worker_that_is_away_takes_nothing_whenever_it_was_placed() -> None:
    state = away()
    for kind in ("prefill", "decode"):
        assert refusal(state, kind, 0, any_role=False) == refusal(state, kind, 9, any_role=True) == "draining"


def test_a_start_goes_on_for_its_own_role_and_begins_anew_for_another() -> None:
    again = change(away(), command(epoch=5), has_work=False, now_s=20.0, start_s=45.0)
    assert (again.epoch, again.next_role, again.ready_at_s) == (5, "decode", 57.0)
    back = change(away(), command(role="prefill", epoch=5), has_work=False, now_s=20.0, start_s=30.0)
    assert (back.next_role, back.ready_at_s) == ("prefill", 50.0)
    assert settle(back, set(), 50.0, 30.0).role == "prefill"


def test_before_its_old_work_is_gone_a_worker_may_keep_its_role_without_a_start() -> None:
    leaving = change(PREFILL, command(), has_work=True, now_s=10.0, start_s=45.0)
    state = change(leaving, command(role="prefill", epoch=5), has_work=True, now_s=11.0, start_s=30.0)
    assert (state.role, state.next_role, state.ready_at_s, state.draining) == ("prefill", None, None, False)
