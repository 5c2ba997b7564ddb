"""Models of a series: against values worked out by hand or by statsmodels, and laws that all of them obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import PCG64, Generator

from dopd_forecaster.arma import Arma, arima_mean
from dopd_forecaster.models import MODELS, TOP_SHARE, WINDOW, blocks, predict

NAMES = sorted(MODELS)
values = st.lists(st.floats(0, 1e6), min_size=1, max_size=120)
each_model = pytest.mark.parametrize("model", NAMES)


def noisy(seed: int = 1, count: int = 60) -> list[float]:
    rng = Generator(PCG64(seed))
    level = 50 + np.cumsum(rng.normal(0, 2, count))
    return [float(value) for value in level + rng.normal(0, 5, count)]


def test_the_last_value_and_the_mean_are_what_they_are_called() -> None:
    assert predict("last", [1.0, 2.0, 4.0], 6) == 4.0
    assert predict("mean-50", [100.0, *[2.0] * WINDOW], 1) == 2.0


def test_the_first_bins_of_an_ewma_count_by_how_many_they_are() -> None:
    assert predict("ewma", [4.0], 1) == 4.0
    assert predict("ewma", [4.0, 8.0], 1) == pytest.approx(4.0 + 0.3 / (0.3 + 0.7 * 0.3) * 4.0)


def test_smoothing_takes_the_alpha_with_the_least_squared_errors() -> None:
    """A step in an otherwise still series calls for the largest alpha allowed: 0.5."""
    step = [10.0] * 20 + [20.0] * 3
    assert predict("ses", step, 1) == pytest.approx(20 - 10 * 0.5**3)


def test_smoothing_is_that_of_statsmodels() -> None:
    from statsmodels.tsa.holtwinters import SimpleExpSmoothing

    seen = noisy()[:WINDOW]
    found = {
        alpha: SimpleExpSmoothing(seen, initialization_method="known", initial_level=sum(seen[:5]) / 5).fit(
            smoothing_level=alpha, optimized=False
        )
        for alpha in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    }
    best = min(found.values(), key=lambda fit: fit.sse)
    assert predict("ses", seen, 7) == pytest.approx(float(best.forecast(1)[0]))


def test_a_damped_trend_is_that_of_statsmodels() -> None:
    from statsmodels.tsa.holtwinters import Holt

    seen = [float(value) + 3 * at for at, value in enumerate(noisy(2)[:WINDOW])]
    best, least = 0.0, math.inf
    for alpha in (0.05, 0.15, 0.25, 0.4):
        for beta in (0.02, 0.05, 0.1, 0.2):
            for phi in (0.8, 0.9, 0.98):
                start = sum(seen[:3]) / 3
                fit = Holt(
                    seen, damped_trend=True, initialization_method="known", initial_level=start, initial_trend=0.0
                ).fit(smoothing_level=alpha, smoothing_trend=beta, damping_trend=phi, optimized=False)
                if fit.sse < least:
                    best, least = float(fit.forecast(6).mean()), fit.sse
    assert predict("holt", seen, 6) == pytest.approx(best)


def test_theta_adds_half_the_slope_of_the_straight_line() -> None:
    """On a straight line 2t the drift is 1 a bin, to which comes what smoothing lags behind."""
    line = [2.0 * at for at in range(30)]
    alpha, n = 0.5, 30
    level = sum(line[:5]) / 5
    for value in line:
        level += alpha * (value - level)
    drift = 1.0 * ((6 - 1) / 2 + (1 - (1 - alpha) ** n) / alpha)
    assert predict("theta", line, 6) == pytest.approx(level + drift)


def test_the_local_level_is_the_filter_of_statsmodels_at_the_best_share() -> None:
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    seen, best, most = noisy(3)[:WINDOW], 0.0, -math.inf
    for share in (0.0005, 0.002, 0.01, 0.03, 0.1, 0.3, 1.0):
        model = UnobservedComponents(seen, "llevel")
        # the noise's variance at its maximum for this share, as the concentrated likelihood has it
        unit = model.smooth([1.0, share])
        errors, spread = unit.forecasts_error[0][1:], unit.forecasts_error_cov[0, 0][1:]
        variance = float((errors**2 / spread).mean())
        fit = model.smooth([variance, variance * share])
        if fit.llf > most:
            best, most = float(fit.forecast(1)[0]), fit.llf
    assert predict("kalman", seen, 4) == pytest.approx(best, rel=1e-6)


def test_blocks_end_with_the_last_bin() -> None:
    assert blocks([9.0, 1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert predict("block-last", [9.0, 1.0, 3.0, 5.0, 7.0], 2) == 6.0
    assert predict("block-mean", [9.0, 1.0, 3.0, 5.0, 7.0], 2) == 4.0


def test_a_swing_within_the_horizon_is_no_news_to_block_models() -> None:
    swing = [0.0, 0.0, 30.0] * 20
    assert predict("block-ses", swing, 3) == pytest.approx(10.0)
    assert predict("last", swing, 3) == 30.0


@each_model
@pytest.mark.parametrize("horizon", [1, 6, 30])
def test_what_never_changes_is_forecast_as_it_is(model: str, horizon: int) -> None:
    for value in (0.0, 7.5):
        for count in (1, 2, 3, 5, 50, 200):
            assert predict(model, [value] * count, horizon) == pytest.approx(value)


@each_model
@given(history=values, horizon=st.integers(1, 40))
def test_no_forecast_is_negative_or_beyond_three_times_what_was_seen(
    model: str, history: list[float], horizon: int
) -> None:
    assert 0 <= predict(model, history, horizon) <= TOP_SHARE * max(history)


@each_model
@given(
    history=st.lists(st.floats(0.001, 1000), min_size=1, max_size=60), factor=st.sampled_from([2.0**-12, 8.0, 1024.0])
)
def test_in_another_unit_the_forecast_is_the_same(model: str, history: list[float], factor: float) -> None:
    """Factors are powers of two, so that no rounding tips a tie between two parameters."""
    scaled = predict(model, [factor * value for value in history], 6)
    assert scaled == pytest.approx(factor * predict(model, history, 6), rel=1e-9)


@each_model
def test_a_bin_that_was_not_seen_is_left_out(model: str) -> None:
    seen = noisy(4)
    holes = [value for one in seen for value in (one, math.nan)]
    assert predict(model, holes, 6) == predict(model, seen, 6)
    assert predict(model, [math.nan, math.inf], 6) == 0.0
    assert predict(model, [], 6) == 0.0


def test_a_horizon_of_no_bins_is_an_error() -> None:
    with pytest.raises(ValueError, match="horizon_bins"):
        predict("last", [1.0], 0)


@pytest.mark.parametrize(
    ("order", "params"),
    [((0, 1, 1), [-0.6]), ((1, 1, 1), [0.3, -0.5]), ((2, 1, 0), [0.2, 0.1]), ((1, 0, 1), [52.0, 0.8, -0.3])],
)
def test_a_fitted_arima_forecasts_as_statsmodels_does(order: tuple[int, int, int], params: list[float]) -> None:
    from statsmodels.tsa.arima.model import ARIMA

    seen = noisy(5)
    p, d, _ = order
    expected = ARIMA(seen, order=order, trend="n" if d else "c").filter([*params, 25.0]).forecast(6).mean()
    mean, rest = (0.0, params) if d else (params[0], params[1:])
    assert arima_mean(Arma(d, mean, tuple(rest[:p]), tuple(rest[p:])), seen, 6) == pytest.approx(expected, rel=1e-4)


def test_a_moving_average_near_minus_one_forecasts_the_mean_and_not_its_first_value() -> None:
    seen = [90.0, *[50.0 + (-1) ** at for at in range(60)]]
    assert arima_mean(Arma(1, ma=(-0.99,)), seen, 6) == pytest.approx(sum(seen) / len(seen), rel=0.02)


def test_a_fitted_arima_knows_too_little_of_a_short_series_and_says_the_last_value() -> None:
    fitted = Arma(1, ma=(-0.7,))
    assert arima_mean(fitted, [], 6) == 0.0
    assert arima_mean(fitted, [3.0], 6) == 3.0
    assert arima_mean(fitted, [math.nan, 3.0], 6) == 3.0
