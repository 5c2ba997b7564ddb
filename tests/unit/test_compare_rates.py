"""Scouting and searching rates: on attainments that are known functions of the rate, what is found is right."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_loadgen.compare.rates import LEAST, MOST, Range, between, largest, next_rate, next_scout, range_of

MANY = 80
Attains = Callable[[float], float]


def falling(knee: float, sharpness: float = 4.0, most: float = 1.0) -> Attains:
    """Half of `most` at the knee."""
    return lambda rate: most / (1 + (rate / knee) ** sharpness)


def scouted(worst: Attains, best: Attains) -> tuple[Range, int]:
    low: dict[float, float] = {}
    high: dict[float, float] = {}
    for probes in range(MANY):
        rate = next_scout(low, high)
        if rate is None:
            return range_of(low, high), probes
        assert rate not in low, "never the same twice"
        low[rate], high[rate] = worst(rate), best(rate)
    raise AssertionError("it does not end")


def searched(attains: Attains, target: float, tolerance: float = 0.03) -> dict[float, float]:
    probed: dict[float, float] = {}
    for _ in range(MANY):
        rate = next_rate(probed, target, tolerance)
        if rate is None:
            return probed
        assert rate not in probed, "never the same twice"
        probed[rate] = attains(rate)
    raise AssertionError("it does not end")


@given(st.floats(0.1, 200), st.floats(1.0, 4.0), st.floats(4.0, 20.0))
def test_the_range_goes_from_where_all_are_well_to_where_the_best_is_below_half(
    knee: float, better: float, sharpness: float
) -> None:
    worst, best = falling(knee, sharpness), falling(knee * better, sharpness)
    found, probes = scouted(worst, best)
    assert worst(found.low) >= 0.98 and best(found.high) < 0.505
    assert worst(found.low * 1.4) < 0.99 and best(found.high / 1.4) >= 0.495
    assert best(found.knee) >= 0.895 and best(found.knee * 1.4) < 0.9
    assert probes <= 22


def test_where_some_requests_can_never_be_good_the_rest_counts() -> None:
    found, _ = scouted(falling(8.0, most=0.7), falling(16.0, most=0.8))
    assert falling(8.0, most=0.7)(found.low) == pytest.approx(0.693, abs=0.012)
    assert falling(16.0, most=0.8)(found.high) < 0.405


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_load_that_no_rate_changes_ends_the_scouting(share: float) -> None:
    found, _ = scouted(lambda _: share, lambda _: share)
    assert LEAST <= found.low <= found.high <= MOST


def test_rates_lie_between_the_ends_at_equal_factors() -> None:
    made = between(Range(1.0, 4.0, 64.0), 7)
    assert made == [1, 2, 4, 8, 16, 32, 64]
    assert between(Range(2.0, 2.0, 2.0)) == [2.0]


@given(st.floats(0.05, 500), st.sampled_from([0.9, 0.99]), st.sampled_from([0.01, 0.03, 0.2]))
def test_the_largest_rate_is_found_to_the_tolerance(knee: float, target: float, tolerance: float) -> None:
    attains = falling(knee)
    truth = knee * ((1 - target) / target) ** 0.25
    rate, kind, monotone = largest(searched(attains, target, tolerance), target)
    assert monotone
    if truth < LEAST:
        assert (rate, kind) == (0.0, "below")
    elif kind == "found":
        assert rate <= truth * 1.0005 and truth <= rate * (1 + tolerance) * 1.0005


def test_a_target_that_is_always_met_or_never_is_said_to_be() -> None:
    assert largest(searched(lambda _: 1.0, 0.9), 0.9)[:2] == (MOST, "above")
    assert largest(searched(lambda _: 0.5, 0.9), 0.9)[:2] == (0.0, "below")


def test_a_target_met_again_above_a_miss_is_found_and_said() -> None:
    probed = {1.0: 0.95, 2.0: 0.85, 4.0: 0.95, 8.0: 0.5}
    assert next_rate(probed, 0.9, 0.03) == 5.657
    assert largest(probed, 0.9) == (4.0, "found", False)


def test_probes_of_one_target_serve_the_next() -> None:
    probed = searched(falling(10.0), 0.99)
    more = dict(probed)
    asked = 0
    while (rate := next_rate(more, 0.90, 0.03)) is not None:
        more[rate] = falling(10.0)(rate)
        asked += 1
    assert asked < len(searched(falling(10.0), 0.90))
    assert math.isclose(largest(more, 0.90)[0], largest(searched(falling(10.0), 0.90), 0.90)[0], rel_tol=0.031)
