"""The busy share of a worker: a fading mean of whether it has work, whenever one looks."""

from math import exp

import pytest

from dopd.worker.tally import FADING_S, Tally


def test_it_rises_with_work_and_fades_without() -> None:
    tally = Tally()
    assert tally.busy_share(100.0) == 0.0
    tally.began(100.0)
    assert tally.busy_share(100.0 + FADING_S) == pytest.approx(1 - exp(-1))
    tally.idle(100.0 + FADING_S)
    assert tally.busy_share(100.0 + 2 * FADING_S) == pytest.approx((1 - exp(-1)) * exp(-1))
    assert tally.busy_s == FADING_S


def test_short_spells_between_two_looks_count_with_their_length() -> None:
    """Whoever looks twice a second would find a worker with spells of 0.1 s always idle, or always at work."""
    tally, now_s = Tally(), 0.0
    for _ in range(200):
        tally.began(now_s)
        tally.began(now_s + 0.05)  # one more, while there is work
        tally.idle(now_s + 0.1)
        now_s += 0.5
    assert tally.busy_share(now_s) == pytest.approx(0.2, abs=0.02)


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    tally = Tally()
    tally.began(100.0)
    tally.idle(110.0)
    assert tally.busy_share(50.0) == tally.busy_share(110.0)
