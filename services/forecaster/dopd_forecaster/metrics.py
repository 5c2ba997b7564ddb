"""The forecaster's numbers for its operator port.

Consumes the newest forecasts and the last complete bin, when somebody looks; produces samples of `METRICS`.
"""

from collections.abc import Iterator

from dopd.obs.metric_table import Sample
from dopd_forecaster.service import Forecaster


def samples(forecaster: Forecaster) -> Iterator[Sample]:
    """What was expected, how well that went of late, and what came."""
    for reason, count in forecaster.refused.items():
        yield "dopd_forecast_windows_refused_total", (reason,), count
    if forecaster.arrivals_per_s is not None:
        yield "dopd_arrivals_per_second", (), forecaster.arrivals_per_s
    for horizon_s, forecast in sorted(forecaster.said.items()):
        horizon = f"{horizon_s:g}"
        yield "dopd_forecast_requests_per_second", (horizon,), forecast.requests_per_s
        for series in forecast.series:
            if series.error is not None:
                yield "dopd_forecast_error_ratio", (series.name, horizon), series.error
