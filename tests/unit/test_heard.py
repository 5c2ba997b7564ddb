"""What the planner keeps of workers' words: which are news, which still hold, and on whose clock."""

from typing import Any

import pytest

from dopd.runtime.virtual import VirtualRuntime
from dopd_planner.heard import Heard
from dopd_proto.telemetry import WorkerState


class Clock(VirtualRuntime):
    """A clock that the test sets."""

    now_s = 100.0

    def now(self) -> float:
        return self.now_s


def a_state(sent_s: float, life: int = 1, **more: Any) -> WorkerState:
    fields: dict[str, Any] = {
        "worker_id": "w1", "incarnation": f"w1-{life}", "role": "decode", "epoch": 1, "phase": "serving", "model": "m",
        "kv_domain": "a", "sent_s": sent_s, "lease_s": 3.0,
    }  # fmt: skip
    return WorkerState(**fields | more)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_words_hold_for_their_lease_and_older_ones_are_no_news(clock: Clock) -> None:
    heard = Heard(clock)
    assert heard.worker(a_state(99.9)) and not heard.worker(a_state(99.8))
    assert not heard.worker(a_state(99.0, life=0)), "late words of an earlier life"
    clock.now_s = 103.1
    assert not heard.live() and heard.last("w1").sent_s == 99.9


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_worker_whose_clock_is_another_is_told_in_ours(clock: Clock, ahead_s: float) -> None:
    heard = Heard(clock)
    assert heard.worker(a_state(99.9 + ahead_s, accepting_at_s=90.0 + ahead_s, drained_at_s=95.0 + ahead_s))
    clock.now_s = 102.0  # a word that took longer says nothing new of its clock
    assert heard.worker(a_state(100.9 + ahead_s, accepting_at_s=90.0 + ahead_s, drained_at_s=95.0 + ahead_s))
    state = heard.live()["w1"]
    assert heard.ahead_s("w1") == pytest.approx(ahead_s - 0.1)
    assert (state.accepting_at_s, state.drained_at_s) == pytest.approx((90.1, 95.1))
    assert state.sent_s == pytest.approx(101.0)


def test_a_worker_that_starts_anew_with_its_clock_set_back_is_heard_once_its_former_life_is_over(clock: Clock) -> None:
    heard = Heard(clock)
    heard.worker(a_state(99.9))
    assert not heard.worker(a_state(99.9 - 3600.0, life=2))
    clock.now_s = 104.0
    assert heard.worker(a_state(103.9 - 3600.0, life=2))
    assert heard.live()["w1"].incarnation == "w1-2"
    assert heard.ahead_s("w1") == pytest.approx(-3600.1)


def test_clocks_that_are_about_the_same_are_left_alone(clock: Clock) -> None:
    heard, state = Heard(clock), a_state(99.5, accepting_at_s=90.0)
    heard.worker(state)
    assert heard.live()["w1"] is state and heard.ahead_s("w1") == heard.ahead_s("w9") == 0.0
