"""Arrivals, lengths and shared prefixes that are drawn have the statistics of their theory."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import arrivals, lengths
from dopd_loadgen.workload.arrivals import Arrivals, varying
from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.expression import arrivals_of, lengths_of
from dopd_loadgen.workload.hmm import fitted
from dopd_loadgen.workload.load import Load, crossfade, load, mixture, scaled, sequence
from dopd_loadgen.workload.prefix import Sharing
from dopd_loadgen.workload.stats import repeated_blocks

KINDS: dict[str, Arrivals] = {
    "poisson": arrivals.steady(5.0),
    "bursty": arrivals.steady(5.0, 0.2),
    "regular": arrivals.steady(5.0, 10.0),
    "mmpp": varying(arrivals.modulated([0.0, 20.0], [30.0, 10.0])),
    "markov": varying(arrivals.markov([0.0, 10.0], [[0.9, 0.1], [0.1, 0.9]], 1.0)),
    "wandering": varying(arrivals.wandering(5.0, 0.3, 20.0)),
    "diurnal": varying(arrivals.diurnal(5.0, 0.8, 100.0)),
    "step": varying(arrivals.steps([2.0, 8.0], 50.0)),
    "ramp": varying(arrivals.ramp(0.0, 10.0, 2000.0)),
}


def counts(times: NDArray[np.float64], window_s: float, duration_s: float) -> NDArray[np.int64]:
    return np.bincount((times / window_s).astype(int), minlength=int(duration_s / window_s))


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals_ascend_within_the_duration_at_their_rate(kind: str) -> None:
    draws = [KINDS[kind](generator(seed, kind), 2000.0) for seed in range(40)]
    assert all((np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 2000 for times in draws)
    found = np.array([len(times) for times in draws])
    # All have a mean of 5 a second. Five times the error of the mean of the draws themselves.
    assert abs(found.mean() - 10_000) < 5 * max(found.std(), 30) / 40**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_run_begins_as_a_shorter_one(kind: str) -> None:
    short, long = (KINDS[kind](generator(1, kind), duration_s) for duration_s in (150.0, 900.0))
    assert len(short) > 40
    np.testing.assert_allclose(long[: len(short)], short, rtol=1e-12)


@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1.0, 4.0])
def test_gamma_arrivals_have_the_variation_and_the_dispersion_of_their_shape(burstiness: float) -> None:
    times = arrivals.steady(20.0, burstiness)(generator(0, "gamma"), 5000.0)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    # Over windows of many gaps the dispersion of a renewal process tends to the square of the gaps' variation.
    found = counts(times, 25.0, 5000.0)
    assert found.var() / found.mean() == pytest.approx(1 / burstiness, rel=0.35)


def test_a_bursty_process_does_not_start_with_too_many() -> None:
    starts = [len(arrivals.steady(1.0, 0.02)(generator(seed, "start"), 20.0)) for seed in range(3000)]
    # A renewal process begun with a whole gap would have 20 + (1/0.02 - 1)/2, over 40.
    assert np.mean(starts) == pytest.approx(20.0, abs=5 * np.std(starts) / 3000**0.5)


def test_on_off_arrivals_have_the_dispersion_of_their_theory() -> None:
    # Rates 0 and 12, mean stays 40 and 20 s: the rate's variance is 12²/3·2/3 = 32, and its autocovariance falls as
    # exp(-r t) with r = 1/40 + 1/20 (Fischer and Meier-Hellstern 1993).
    times = varying(arrivals.modulated([0.0, 12.0], [40.0, 20.0]))(generator(0, "onoff"), 40_000.0)
    found = counts(times, 1.0, 40_000.0)
    r = 3 / 40
    theory = 1 + 2 * 32 / (4 * r**2) * (r - 1 + math.exp(-r))
    assert found.mean() == pytest.approx(4.0, rel=0.1)
    assert found.var() / found.mean() == pytest.approx(theory, rel=0.1)


def test_a_wandering_rate_has_its_variation_and_its_memory() -> None:
    curve = arrivals.wandering(7.0, 0.4, 60.0)(generator(0, "ou"), 400_000.0)
    rates = curve.rates_rps
    assert rates.mean() == pytest.approx(7.0, rel=0.03)
    assert rates.std() / rates.mean() == pytest.approx(0.4, rel=0.08)
    logs = np.log(rates)
    assert np.corrcoef(logs[:-12], logs[12:])[0, 1] == pytest.approx(math.exp(-1), abs=0.04)


def test_the_diurnal_rate_goes_from_trough_to_peak() -> None:
    times = varying(arrivals.diurnal(10.0, 0.5, 1000.0))(generator(0, "day"), 100_000.0)
    found = np.bincount((times % 1000 / 100).astype(int), minlength=10) / (100 * 100)
    middle = (np.arange(10) + 0.5) / 10
    expected = 10 * (1 - 0.5 * np.cos(2 * np.pi * middle))
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_steps_and_ramps_follow_their_line() -> None:
    steps = counts(varying(arrivals.steps([2.0, 0.0, 8.0], 500.0))(generator(0, "s"), 2000.0), 500.0, 2000.0)
    assert steps[1] == 0
    np.testing.assert_allclose(steps[[0, 2, 3]], [1000, 4000, 1000], rtol=0.15)
    ramp = counts(varying(arrivals.ramp(0.0, 20.0, 1000.0))(generator(0, "r"), 2000.0), 250.0, 2000.0)
    np.testing.assert_allclose(ramp, [625, 1875, 3125, 4375, 5000, 5000, 5000, 5000], rtol=0.15)


def test_a_markov_chain_starts_and_stays_as_its_long_run_says() -> None:
    moves = [[0.98, 0.02, 0.0], [0.0, 0.9, 0.1], [0.05, 0.05, 0.9]]
    shares = arrivals.at_rest(np.array(moves))
    np.testing.assert_allclose(shares @ np.array(moves), shares, atol=1e-9)
    rate = arrivals.markov([1.0, 2.0, 3.0], moves, 1.0)
    firsts = [rate(generator(seed, "m"), 1.0).rates_rps[0] for seed in range(2000)]
    np.testing.assert_allclose([firsts.count(level) / 2000 for level in (1.0, 2.0, 3.0)], shares, atol=0.05)


def test_the_hidden_markov_fit_finds_the_levels_it_was_drawn_from() -> None:
    moves = [[0.95, 0.05, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]]
    curve = arrivals.markov([0.0, 5.0, 30.0], moves, 1.0)(generator(0, "hmm"), 2500.0)
    drawn = generator(1, "hmm").poisson(curve.rates_rps).astype(float)
    means, found = fitted(drawn, 4)
    # Both levels that start at 0 may end there: their sum is what was drawn.
    busy = np.sort(means[means > 1])
    np.testing.assert_allclose(busy, [5.0, 30.0], rtol=0.05)
    np.testing.assert_allclose(found.sum(1), 1.0)
    stays = found[np.argmax(means), np.argmax(means)]
    assert stays == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: arrivals.steady(0.0), "rate_rps"),
        (lambda: arrivals.steady(math.inf), "rate_rps"),
        (lambda: arrivals.steady(1.0, 1e-9), "--burstiness"),
        (lambda: arrivals.modulated([1.0], [1.0]), "mmpp"),
        (lambda: arrivals.modulated([1.0, -1.0], [1.0, 1.0]), "rates 2"),
        (lambda: arrivals.modulated([1.0, 1.0], [1.0, 0.0]), "stays 2"),
        (lambda: arrivals.markov([1.0, 2.0], [[0.5, 0.4], [0.5, 0.5]], 1.0), "markov"),
        (lambda: arrivals.markov([0.0, 0.0], [[0.5, 0.5], [0.5, 0.5]], 1.0), "markov"),
        (lambda: arrivals.diurnal(1.0, 1.1, 10.0), "amplitude"),
        (lambda: arrivals.steps([0.0, 0.0], 10.0), "step"),
        (lambda: arrivals.ramp(0.0, 0.0, 10.0), "ramp"),
        (lambda: arrivals.steady(1e6)(generator(0, "x"), 3600.0), "--duration-s"),
        (lambda: varying(arrivals.steps([1.0], 1e-9))(generator(0, "x"), 3600.0), "--duration-s"),
        (lambda: lengths.fixed(0), "length"),
        (lambda: lengths.fixed(10**8), "length"),
        (lambda: lengths.uniform(5, 4), "uniform"),
        (lambda: lengths.lognormal_of(100, 200), "lognormal"),
        (lambda: lengths.bimodal(10, 100, 1.0), "bimodal"),
        (lambda: lengths.quantiles([0, 0.5], [1, 2]), "quantiles"),
        (lambda: lengths.quantiles([0, 1], [2, 1]), "quantiles"),
        (lambda: lengths.quantiles([0], [2]), "quantiles"),
    ],
)
def test_processes_that_cannot_be_are_refused(make: Callable[[], object], where: str) -> None:
    with pytest.raises(LoadError) as caught:
        make()
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("make", "mean", "p50"),
    [
        (lengths.fixed(77), 77, 77),
        (lengths.uniform(10, 30), 20, 20),
        (lengths.lognormal_of(1200, 800), 1200, 800),
        (lengths.lognormal(math.log(500), 0.8), 500 * math.exp(0.32), 500),
        (lengths.quantiles([0, 0.5, 1], [1, 101, 1001]), 0.5 * 51 + 0.5 * 551, 101),
        (lengths.bimodal(50, 2000, 0.25, 0.1), (0.75 * 50 + 0.25 * 2000) * math.exp(0.005), None),
        (lengths.mixed([(3, lengths.fixed(10)), (1, lengths.fixed(50))]), 20, 10),
    ],
)
def test_lengths_have_the_mean_and_median_of_their_law(make: lengths.Lengths, mean: float, p50: float | None) -> None:
    drawn = make(generator(0, "lengths"), 100_000)
    assert drawn.dtype == np.int64 and drawn.min() >= 1
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert p50 is None or np.median(drawn) == pytest.approx(p50, rel=0.02)


@given(st.floats(0, 12), st.floats(0, 3), st.integers(1, 5000))
def test_lengths_stay_between_one_and_the_limit(mu: float, sigma: float, limit: int) -> None:
    drawn = lengths.lognormal(mu, sigma, limit)(generator(0, "clip"), 200)
    assert drawn.min() >= 1 and drawn.max() <= limit


@pytest.mark.parametrize(
    ("flag", "text", "reason"),
    [
        ("--isl", "normal:mean=3", "'normal' is none of fixed, uniform"),
        ("--isl", "lognormal:mean=3", "needs mean and p50, or mu and sigma"),
        ("--isl", "lognormal:mean=3,p50=2,mu=1,sigma=1", "needs mean and p50, or mu and sigma"),
        ("--isl", "lognormal:mean=3,middle=2", "lognormal takes mean, p50, mu, sigma, max"),
        ("--isl", "uniform:low=3", "uniform takes low, high .needs low, high."),
        ("--isl", "1.5", "'1.5' is none of"),
        ("--isl", "fixed:tokens=1.5", "1.5 is not a whole number"),
        ("--isl", "fixed:tokens=inf", "inf is not a whole number"),
        ("--isl", "fixed:tokens=1/2", "tokens of fixed is one number"),
        ("--isl", "uniform:low=a,high=2", "'low=a' is not name=number"),
        ("--isl", "quantiles:shares=0/1,tokens=1", "2 shares and 1 tokens"),
        ("--isl", "0", "0.* tokens is not in"),
        ("--isl", "", "'' is none of"),
        ("--arrivals", "poisson:rate=0", "0.0 is not above 0"),
        ("--arrivals", "mmpp:rates=1,stays=2", "two or more rates"),
        ("--arrivals", "gamma:rate=3", "gamma takes rate, burstiness"),
    ],
)
def test_words_that_mean_nothing_are_refused_with_their_flag(flag: str, text: str, reason: str) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        (lengths_of if flag == "--isl" else arrivals_of)(flag, text)
    assert caught.value.where.startswith(flag)


@pytest.mark.parametrize(
    ("text", "mean"),
    [("100", 100), ("fixed:tokens=100", 100), ("uniform:low=50,high=150", 100), ("lognormal:mean=100, p50=80", 100),
     ("lognormal:mu=4.605,sigma=0.01", 100), ("bimodal:low=20,high=500,share=0.5,sigma=0.01", 260),
     ("quantiles:shares=0/0.5/1,tokens=1/100/199", 100)],
)  # fmt: skip
def test_lengths_in_words(text: str, mean: float) -> None:
    assert lengths_of("--isl", text)(generator(0, "w"), 20_000).mean() == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    "text",
    ["poisson:rate=4", "gamma:rate=4,burstiness=0.5", "mmpp:rates=0/8,stays=5/5", "wandering:rate=4,cv=0.2,memory=60",
     "diurnal:rate=4,amplitude=0.5,period=100", "step:rates=2/6,every=50", "ramp:start=0,end=8,over=1000",
     "step:rates=2/6,every=50,burstiness=0.5"],
)  # fmt: skip
def test_arrivals_in_words(text: str) -> None:
    drawn = [len(arrivals_of("--arrivals", text)(generator(seed, "w"), 1000.0)) for seed in range(10)]
    assert np.mean(drawn) == pytest.approx(4000, rel=0.1)


# --------------------------------------------------------------------------------------------------------- together


def steady(rate_rps: float, isl: int, phase: str) -> Load:
    return load(arrivals.steady(rate_rps), lengths.fixed(isl), lengths.fixed(1), phase=phase)


def share(planned: list[Planned], phase: str, from_s: float, to_s: float) -> float:
    inside = [one.phase == phase for one in planned if from_s <= one.at_s < to_s]
    return sum(inside) / len(inside)


def test_a_sequence_has_one_part_after_the_other_and_begins_again() -> None:
    drawn = sequence([(steady(20, 1, "a"), 10.0), (steady(40, 2, "b"), 5.0)])(generator(0, "x"), 37.0)
    for one in drawn:
        assert one.phase == ("a" if one.at_s % 15 < 10 else "b")
        assert one.isl_tokens == (1 if one.phase == "a" else 2)
    times = [one.at_s for one in drawn]
    assert times == sorted(times) and times[-1] < 37
    assert len(drawn) == pytest.approx(20 * 27 + 40 * 10, rel=0.15)


def test_a_crossfade_keeps_the_sum_and_moves_the_shares_on_a_straight_line() -> None:
    made = crossfade([(steady(200, 1, "a"), 100.0), (steady(200, 1, "b"), 100.0)], 50.0)
    drawn = made(generator(0, "x"), 200.0)
    found = counts(np.array([one.at_s for one in drawn]), 20.0, 200.0)
    np.testing.assert_allclose(found, 4000, rtol=0.1)
    assert share(drawn, "b", 0, 75) == 0
    assert share(drawn, "b", 75, 87.5) == pytest.approx(0.125, abs=0.04)
    assert share(drawn, "b", 95, 105) == pytest.approx(0.5, abs=0.05)
    assert share(drawn, "b", 125, 175) == 1
    assert share(drawn, "a", 190, 200) == pytest.approx(0.4, abs=0.05)


def test_a_fade_longer_than_a_part_is_refused() -> None:
    with pytest.raises(LoadError, match=r"fade_s: 11\.0 is longer than the shortest part"):
        crossfade([(steady(1, 1, "a"), 10.0)], 11.0)
    with pytest.raises(LoadError, match="has no parts"):
        sequence([])
    with pytest.raises(LoadError, match="part 1"):
        sequence([(steady(1, 1, "a"), 0.0)])


def test_a_mixture_has_all_its_parts_in_order_of_time() -> None:
    drawn = mixture([steady(30, 1, "a"), steady(10, 2, "b")])(generator(0, "x"), 200.0)
    times = [one.at_s for one in drawn]
    assert times == sorted(times)
    assert share(drawn, "a", 0, 200) == pytest.approx(0.75, abs=0.03)


def test_a_scaled_load_is_the_same_load_in_less_time() -> None:
    plain, fast = (
        steady(10, 1, "a")(generator(0, "x"), 300.0),
        scaled(steady(10, 1, "a"), 3.0)(generator(0, "x"), 100.0),
    )
    assert [one.at_s * 3 for one in fast] == pytest.approx([one.at_s for one in plain])


def test_conversations_grow_and_share_the_prefix_they_grew_from() -> None:
    sharing = Sharing(system_blocks=1, follow=1.0, growth_p50=600.0, growth_sigma=0.01, recent=50)
    isl = [1000 + 700 * turn for turn in range(40)]
    blocks = sharing.blocks(generator(0, "x"), isl)
    for turn, (tokens, ids) in enumerate(zip(isl, blocks, strict=True)):
        assert len(ids) == -(-tokens // 512) and len(set(ids)) == len(ids)
        if turn:
            shared = sum(a == b for a, b in zip(ids, blocks[turn - 1], strict=False))
            assert shared == isl[turn - 1] // 512


def test_without_followers_only_the_system_prefix_is_shared() -> None:
    sharing = Sharing(system_blocks=2, follow=0.0, growth_p50=600.0, growth_sigma=1.0, recent=50)
    blocks = sharing.blocks(generator(0, "x"), [5120] * 100)
    planned = [Planned(0, 0.0, 5120, 1, blocks=ids) for ids in blocks]
    assert {ids[:2] for ids in blocks} == {blocks[0][:2]}
    assert repeated_blocks(planned) == pytest.approx(1 - (2 + 100 * 8) / 1000)
    assert sharing.blocks(generator(0, "x"), [100])[0] == blocks[0][:1]


def test_loads_that_are_mixed_share_no_blocks() -> None:
    sharing = Sharing(system_blocks=1, follow=0.3, growth_p50=600.0, growth_sigma=1.0, recent=50)
    part = load(arrivals.steady(5.0), lengths.fixed(2000), lengths.fixed(1), sharing)
    first, second = mixture([part, part]), part
    drawn = first(generator(0, "x"), 60.0)
    starts = {one.blocks[0] for one in drawn}
    assert len(starts) == 2
    assert not starts & {one.blocks[0] for one in second(generator(1, "x"), 60.0)}
