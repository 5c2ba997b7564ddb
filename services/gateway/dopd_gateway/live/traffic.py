"""Requests that came and requests that were expected, of all gateways. Pure.

Consumes `ArrivalWindow`s and `Forecast`s; produces rows by time. A forecast of [start_s, start_s + horizon_s) is to be
held against the windows that end in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dopd_gateway.live import KEEP_S
from dopd_proto.telemetry import ArrivalWindow, Forecast

MOST_ROWS, MOST_HORIZONS = 400, 8
RATE = "requests_per_s"
T = TypeVar("T")


@dataclass(slots=True)
class Traffic:
    """`came`: by the end of windows and by gateway, requests per second. `said`: forecasts by horizon and start."""

    window_s: float
    came: dict[float, dict[str, float]] = field(default_factory=dict)
    said: dict[float, dict[float, Forecast]] = field(default_factory=dict)

    def arrived(self, window: ArrivalWindow, now_s: float) -> None:
        """A gateway's window. Gateways cut time alike, but for a few milliseconds."""
        end_s = round(window.end_s / self.window_s) * self.window_s
        per_s = window.requests / max(1e-3, window.end_s - window.start_s)
        self.came.setdefault(end_s, {})[window.gateway_id] = per_s
        self.came = _recent(self.came, now_s)

    def expected(self, forecast: Forecast, now_s: float) -> None:
        """A forecast."""
        if forecast.horizon_s in self.said or len(self.said) < MOST_HORIZONS:
            said = self.said.setdefault(forecast.horizon_s, {})
            said[forecast.start_s] = forecast
            self.said[forecast.horizon_s] = _recent(said, now_s)

    def arrivals(self) -> dict[float, float]:
        """Requests per second by the end of the window."""
        return {end_s: round(sum(by.values()), 3) for end_s, by in self.came.items()}

    def forecasts(self) -> dict[float, dict[str, float]]:
        """Those with the shortest horizon, by their start."""
        said = self.said[min(self.said)] if self.said else {}
        return {start_s: row(forecast) for start_s, forecast in said.items()}

    def ahead(self, now_s: float) -> dict[float, dict[str, float]]:
        """The newest one of each horizon that is not over, by horizon."""
        newest = {horizon_s: said[max(said)] for horizon_s, said in self.said.items() if said}
        return {
            horizon_s: row(forecast) | {"start_s": forecast.start_s}
            for horizon_s, forecast in newest.items()
            if forecast.start_s + horizon_s > now_s
        }


def row(forecast: Forecast) -> dict[str, float]:
    """Its mean rate; `low` and `high` are the band that should have `share` of what comes, if it has quantiles."""
    made = {"horizon_s": forecast.horizon_s, "mean": round(forecast.requests_per_s, 3)}
    rate = next((one for one in forecast.series if one.name == RATE), None)
    if rate is None or len(rate.quantiles) != len(forecast.quantile_levels) or len(rate.quantiles) < 2:
        return made
    low, high = band(forecast.quantile_levels)
    levels = forecast.quantile_levels
    return made | {
        "low": round(rate.quantiles[low], 3),
        "high": round(rate.quantiles[high], 3),
        "share": round(levels[high] - levels[low], 3),
    }


def band(levels: Sequence[float]) -> tuple[int, int]:
    """Places of the lowest level and of the one that lies as far from the top: 0.1 and 0.9 of 0.1, 0.5, 0.9, 0.95."""
    low = min(range(len(levels)), key=lambda n: levels[n])
    return low, min(range(len(levels)), key=lambda n: abs(1.0 - levels[low] - levels[n]))


def _recent(rows: dict[float, T], now_s: float) -> dict[float, T]:
    kept = sorted(at_s for at_s in rows if at_s >= now_s - KEEP_S)[-MOST_ROWS:]
    return {at_s: rows[at_s] for at_s in kept}
