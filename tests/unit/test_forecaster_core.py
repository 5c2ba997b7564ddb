"""Smoothed arrivals and what is expected of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_forecaster.core import Level, fold, forecast
from dopd_proto.telemetry import ArrivalWindow


def window(requests: int = 0, isl: int = 0, osl: int = 0, start_s: float = 0.0, end_s: float = 10.0) -> ArrivalWindow:
    return ArrivalWindow(
        gateway_id="g", incarnation="g-1", start_s=start_s, end_s=end_s, requests=requests,
        isl_tokens_sum=requests * isl, isl_tokens_square_sum=requests * isl * isl, osl_tokens_limit_sum=requests * osl,
    )  # fmt: skip


def test_the_first_window_counts_in_full() -> None:
    level = fold(Level(), window(20, 100, 30), 0.3)
    assert (level.requests_per_s, level.isl_per_s, level.osl_per_s, level.seen) == (2.0, 200.0, 60.0, 1)


def test_later_windows_count_by_their_weight() -> None:
    level = fold(fold(Level(), window(10), 0.3), window(20), 0.3)
    assert level.requests_per_s == pytest.approx(1.0 + 0.3 * 1.0)


@pytest.mark.parametrize("end_s", [0.0, -1.0])
def test_a_window_of_no_time_is_skipped(end_s: float) -> None:
    level = fold(Level(), window(10), 0.3)
    assert fold(level, window(99, end_s=end_s), 0.3) is level


def test_silence_brings_the_rate_down_to_nothing() -> None:
    level = fold(Level(), window(100, 10), 0.5)
    for _ in range(60):
        level = fold(level, window(), 0.5)
    assert level.requests_per_s < 1e-9


def test_the_forecast_is_the_sum_over_gateways_with_the_mean_of_their_requests() -> None:
    levels = [fold(Level(), window(10, 100, 8), 0.3), fold(Level(), window(30, 200, 16), 0.3)]
    seen = forecast(levels, 5.0, 10.0)
    assert (seen.requests_per_s, seen.isl_tokens_mean, seen.osl_tokens_mean) == (4.0, 175.0, 14.0)
    assert seen.isl_tokens_var == pytest.approx(0.75 * 25**2 + 0.25 * 75**2)
    assert (seen.start_s, seen.horizon_s, seen.model) == (5.0, 10.0, "ewma")


def test_without_requests_nothing_is_expected() -> None:
    seen = forecast([], 0.0, 10.0)
    assert (seen.requests_per_s, seen.isl_tokens_mean, seen.isl_tokens_var, seen.osl_tokens_mean) == (0, 0, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9000), st.integers(1, 900)), min_size=1), st.floats(0.01, 1)
)
def test_means_stay_within_what_was_seen(windows: list[tuple[int, int, int]], alpha: float) -> None:
    level = Level()
    for requests, isl, osl in windows:
        level = fold(level, window(requests, isl, osl), alpha)
    seen = forecast([level], 0.0, 1.0)
    assert 0 <= seen.requests_per_s <= max(requests for requests, _, _ in windows) / 10 + 1e-9
    assert seen.isl_tokens_var >= 0
    if seen.requests_per_s > 1e-6:
        lengths = [isl for requests, isl, _ in windows if requests]
        assert min(lengths) * 0.999 <= seen.isl_tokens_mean <= max(lengths) * 1.001
