"""The forecaster's numbers for its operator port.

Consumes the newest forecasts and the last complete bin, when somebody looks; produces samples of `METRICS`.
"""

from collections.abc import Iterator

from dopd.obs.metric_table import Sample
from dopd_forecaster.service import Forecaster

REFUSALS = ("not_finite", "negative", "empty", "future", "old", "duplicate")
WORK = {"prefill_work": "prefill", "decode_work": "decode"}


def samples(forecaster: Forecaster) -> Iterator[Sample]:
    """What was expected, how well that went of late, and what came."""
    for reason, count in {**dict.fromkeys(REFUSALS, 0), **forecaster.refused}.items():
        yield "dopd_forecast_windows_refused_total", (reason,), count
    if forecaster.arrivals_per_s is not None:
        yield "dopd_arrivals_per_second", (), forecaster.arrivals_per_s
    for horizon_s, forecast in sorted(forecaster.said.items()):
        horizon = f"{horizon_s:g}"
        yield "dopd_forecast_requests_per_second", (horizon,), forecast.requests_per_s
        yield "dopd_forecast_timestamp_seconds", (horizon,), forecast.start_s
        for series in forecast.series:
            if series.name == "requests_per_s":
                for level, value in zip(forecast.quantile_levels, series.quantiles, strict=True):
                    yield "dopd_forecast_quantile_requests_per_second", (horizon, f"{level:g}"), value
            elif role := WORK.get(series.name):
                yield "dopd_forecast_busy_workers", (role, horizon), series.point
            if series.error is not None:
                yield "dopd_forecast_error_ratio", (series.name, horizon), series.error
