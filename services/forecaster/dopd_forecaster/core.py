"""Exponentially weighted means of the arrival windows. Pure.

Plain smoothing carried to the horizon is the best or within a few per cent of it on most real traces
(workloads.md section 2.4).
"""

from dataclasses import dataclass, replace

from dopd_proto.telemetry import ArrivalWindow, Forecast


@dataclass(frozen=True, slots=True)
class Level:
    """Smoothed sums per second; `seen` counts windows."""

    requests_per_s: float = 0.0
    isl_per_s: float = 0.0
    isl_square_per_s: float = 0.0
    osl_per_s: float = 0.0
    seen: int = 0


def fold(level: Level, window: ArrivalWindow, alpha: float) -> Level:
    """The level after one more window; an empty or reversed one is skipped. `alpha` in (0, 1] weighs the new one."""
    span_s = window.end_s - window.start_s
    if span_s <= 0:
        return level
    weight = alpha if level.seen else 1.0
    new = Level(
        window.requests / span_s,
        window.isl_tokens_sum / span_s,
        window.isl_tokens_square_sum / span_s,
        window.osl_tokens_limit_sum / span_s,
    )
    return replace(
        level,
        requests_per_s=level.requests_per_s + weight * (new.requests_per_s - level.requests_per_s),
        isl_per_s=level.isl_per_s + weight * (new.isl_per_s - level.isl_per_s),
        isl_square_per_s=level.isl_square_per_s + weight * (new.isl_square_per_s - level.isl_square_per_s),
        osl_per_s=level.osl_per_s + weight * (new.osl_per_s - level.osl_per_s),
        seen=level.seen + 1,
    )


def forecast(levels: list[Level], start_s: float, horizon_s: float) -> Forecast:
    """The sum over gateways; means and variance of lengths follow from the smoothed moments."""
    rate = sum(level.requests_per_s for level in levels)
    mean = sum(level.isl_per_s for level in levels) / rate if rate else 0.0
    square = sum(level.isl_square_per_s for level in levels) / rate if rate else 0.0
    osl = sum(level.osl_per_s for level in levels) / rate if rate else 0.0
    return Forecast(
        start_s=start_s,
        horizon_s=horizon_s,
        model="ewma",
        requests_per_s=rate,
        isl_tokens_mean=mean,
        isl_tokens_var=max(0.0, square - mean * mean),
        osl_tokens_mean=osl,
    )
