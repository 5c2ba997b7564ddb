"""What meets a service level objective."""

import pytest

from dopd.slo import Slo, attains, met, tpot_s

SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def test_time_per_token_counts_the_gaps() -> None:
    assert tpot_s(1.0, 2.0, 11) == pytest.approx(0.1)
    assert tpot_s(1.0, 9.0, 1) == tpot_s(1.0, 9.0, 0) == 0.0


def test_a_request_attains_when_both_times_hold() -> None:
    assert attains(SLO, 0.0, [1.0, 1.1, 1.2], 3)
    assert not attains(SLO, 0.0, [1.1, 1.2, 1.3], 3)
    assert not attains(SLO, 0.0, [0.5, 0.6, 0.8], 3)


def test_the_first_token_counts_from_the_intended_time() -> None:
    assert attains(SLO, 5.0, [6.0], 1)
    assert not attains(SLO, 4.9, [6.0], 1)


def test_missing_tokens_are_a_miss() -> None:
    assert not attains(SLO, 0.0, [], 1)
    assert not attains(SLO, 0.0, [0.5, 0.6], 3)


def test_one_slow_gap_is_forgiven_when_the_mean_holds() -> None:
    assert attains(SLO, 0.0, [0.5, 0.55, 0.73, 0.78], 4)


def test_a_target_for_the_whole_answer_counts_where_it_is_given() -> None:
    assert met(Slo(1.0, 0.1, e2e_s=2.0), 1.0, 2.0, 3.0, 11) == (True, True, True)
    assert met(Slo(1.0, 0.1, e2e_s=1.9), 1.0, 2.0, 3.0, 11) == (True, True, False)
    assert not attains(Slo(1.0, 0.1, e2e_s=1.9), 1.0, [2.0, 3.0], 2)
