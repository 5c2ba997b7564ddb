"""Which model is used, and how wide the band about it is."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_forecaster import choose
from dopd_forecaster.choose import LEVELS, Track, offer, quantiles, settle, start

POOL = ("last", "ses", "mean-50")


def played(track: Track, rounds: int, came: float, **points: float) -> Track:
    for at in range(rounds):
        offer(track, at, points)
        settle(track, came, 1.0)
    return track


def test_before_anything_came_the_model_is_the_best_by_experience() -> None:
    assert start(POOL, 1).chosen == "ses"
    assert start(POOL, 30).chosen == "mean-50"
    assert start(("arima",), 1).chosen == "arima"


def test_at_a_horizon_of_one_bin_a_block_is_a_bin_and_not_a_model() -> None:
    assert "block-ses" not in start(("ses", "block-ses"), 1).pool
    assert "block-ses" in start(("ses", "block-ses"), 6).pool
    assert start(("block-ses",), 1).pool == ("ses",)


def test_the_model_that_errs_less_takes_over_and_is_named() -> None:
    track = played(start(POOL, 1), 60, came=10.0, **{"last": 10.5, "ses": 14.0, "mean-50": 14.0})
    outlook = offer(track, 60, {"last": 11.0, "ses": 1.0, "mean-50": 1.0})
    assert (outlook.model, outlook.point, outlook.scored, outlook.reason) == ("last", 11.0, 60, "")
    assert outlook.error == pytest.approx(0.05)


def test_a_little_better_is_not_enough_to_change() -> None:
    track = played(start(POOL, 1), 200, came=10.0, **{"last": 20.0, "ses": 11.0, "mean-50": 10.99})
    assert track.chosen == "ses"


def test_what_errs_less_of_late_counts_more_than_what_did_once() -> None:
    track = played(start(POOL, 1), 300, came=10.0, **{"last": 20.0, "ses": 10.5, "mean-50": 20.0})
    assert played(track, 400, came=10.0, **{"last": 10.1, "ses": 20.0, "mean-50": 20.0}).chosen == "last"


def test_long_horizons_take_more_evidence_because_they_overlap() -> None:
    points = {"last": 10.5, "ses": 11.0, "mean-50": 11.5}
    assert played(start(POOL, 1), 60, came=10.0, **points).chosen == "last"
    assert played(start(POOL, 30), 60, came=10.0, **points).chosen == "mean-50"


def test_what_was_not_seen_teaches_nothing() -> None:
    track = start(POOL, 1)
    offer(track, 0, dict.fromkeys(POOL, 5.0))
    settle(track, math.nan, 0.0)
    assert (track.scored, len(track.pending)) == (0, 0)


def test_a_forecast_is_due_when_its_horizon_is_over() -> None:
    track = start(POOL, 3)
    for at in range(5):
        offer(track, at, dict.fromkeys(POOL, 1.0))
    assert choose.due(track, 4) == [0, 1]


def test_nothing_but_zeros_is_learnt_from_without_a_division_by_them() -> None:
    track = played(start(POOL, 1), 30, came=0.0, **dict.fromkeys(POOL, 0.0))
    outlook = offer(track, 30, dict.fromkeys(POOL, 0.0))
    assert (outlook.point, outlook.error, outlook.quantiles) == (0.0, None, (0.0, 0.0, 0.0, 0.0))


def test_with_little_history_the_band_is_wide_and_the_forecast_says_so() -> None:
    outlook = offer(start(POOL, 1), 0, dict.fromkeys(POOL, 16.0))
    assert outlook.reason == "short_history"
    assert outlook.quantiles[0] <= 9.0 + 1e-9 and outlook.quantiles[-1] >= 25.0 - 1e-9


def test_quantiles_of_many_residuals_are_their_order_statistics() -> None:
    """Roots 4 + r for r = -0.50, -0.49, … 0.49: the quantile p is (4 + r at place p (n + 1))^2."""
    residuals = [number / 100 for number in range(-50, 50)]
    expected = tuple((4 + (p * 101 - 1) / 100 - 0.5) ** 2 for p in LEVELS)
    assert quantiles(16.0, residuals) == pytest.approx(expected)


@given(
    point=st.floats(0, 1e6),
    residuals=st.lists(st.floats(-1e3, 1e3), max_size=120),
)
def test_quantiles_are_never_negative_and_never_fall(point: float, residuals: list[float]) -> None:
    found = quantiles(point, residuals)
    assert found[0] >= 0
    assert all(a <= b for a, b in pairwise(found))


@given(points=st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=60))
def test_in_another_unit_the_band_is_the_same(points: list[tuple[float, float]]) -> None:
    bands = []
    for factor in (1.0, 64.0):
        track = start(("last",), 1)
        for at, (point, came) in enumerate(points):
            offer(track, at, {"last": factor * point})
            settle(track, factor * came, 1.0)
        bands.append([value / factor for value in offer(track, len(points), {"last": factor * 5.0}).quantiles])
    assert bands[0] == pytest.approx(bands[1])


def test_nine_of_ten_poisson_counts_lie_below_the_ninetieth_percentile() -> None:
    from numpy.random import PCG64, Generator

    rng = Generator(PCG64(7))
    track, below = start(("mean-50",), 1), 0
    for at, came in enumerate(rng.poisson(60, 1500)):
        below += came <= offer(track, at, {"mean-50": 60.0}).quantiles[2]
        settle(track, float(came), 1.0)
    assert 0.87 <= below / 1500 <= 0.94
