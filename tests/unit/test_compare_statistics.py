"""Paired differences: the interval is Student's, and nothing is claimed without one that leaves 0 out."""

import random

import pytest

from dopd_loadgen.compare.statistics import T_975, Difference, difference, paired, paired_ratio, t_975


def test_the_interval_is_the_one_of_a_worked_example() -> None:
    # Mean 5, standard deviation 2, n = 4: 5 ± 3.182446 * 2 / 2.
    found = difference([3.0, 3.0 + 4.0 / 3.0 * 1.5, 7.0, 5.0])
    assert found.mean == 5.0
    deviation = (sum((x - 5.0) ** 2 for x in (3.0, 5.0, 7.0, 5.0)) / 3) ** 0.5
    assert found.high == pytest.approx(5.0 + 3.182446 * deviation / 2)
    assert found.low == pytest.approx(5.0 - 3.182446 * deviation / 2)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (9, 2.26216), (30, 2.04227), (40, 2.02108), (120, 1.97993)]
)
def test_t_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert t_975(freedom) == pytest.approx(expected, abs=6e-6 * expected)


def test_the_expansion_goes_on_where_the_table_ends() -> None:
    assert list(T_975) == sorted(T_975, reverse=True)
    assert T_975[-1] > t_975(31) > t_975(32) > 1.96


def test_the_interval_holds_the_true_mean_of_normal_differences_in_95_of_100_cases() -> None:
    rng = random.Random("interval")
    held = 0
    for _ in range(4000):
        found = difference([rng.gauss(1.0, 2.0) for _ in range(5)])
        assert found.low is not None and found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 0.94 < held / 4000 < 0.96


@pytest.mark.parametrize(
    ("made", "claim"),
    [
        (Difference(1, 9.0), 0),
        (Difference(5, 1.0, 0.1, 1.9), 1),
        (Difference(5, 1.0, -0.1, 2.1), 0),
        (Difference(5, -1.0, -1.9, -0.1), -1),
        (Difference(5, 0.0, 0.0, 0.0), 0),
    ],
)
def test_a_claim_needs_an_interval_that_leaves_zero_out(made: Difference, claim: int) -> None:
    assert made.claim == claim


def test_pairs_are_by_seed_and_a_seed_that_one_lacks_does_not_count() -> None:
    found = paired({1: 10.0, 2: 21.0, 3: 99.0}, {2: 20.0, 1: 9.0})
    assert found is not None and (found.n, found.mean, found.claim) == (2, 1.0, 1)
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_what_arrivals_do_to_both_drops_out_of_a_paired_difference() -> None:
    rng = random.Random("paired")
    theirs = {seed: rng.uniform(10, 100) for seed in range(5)}
    ours = {seed: value + 1 + rng.gauss(0, 0.1) for seed, value in theirs.items()}
    found = paired(ours, theirs)
    assert found is not None and found.claim == 1


def test_a_ratio_is_the_geometric_mean_and_zero_is_the_same() -> None:
    found = paired_ratio({1: 2.0, 2: 8.0, 3: 0.0}, {1: 1.0, 2: 2.0, 3: 1.0})
    assert found is not None and found.n == 2 and found.mean == pytest.approx(8**0.5 - 1)
    same = paired_ratio({1: 3.0, 2: 5.0}, {1: 3.0, 2: 5.0})
    assert same is not None and same.mean == 0 and same.claim == 0
    assert paired_ratio({1: 0.0}, {1: 1.0}) is None
