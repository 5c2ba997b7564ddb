"""The forecaster's decision: what to say after a window. Pure: windows and the time in, `Forecast`s out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dopd_forecaster import choose
from dopd_forecaster.arma import ARIMA, Arma, arima_mean
from dopd_forecaster.choose import Outlook, Track
from dopd_forecaster.models import predict
from dopd_forecaster.series import SERIES, Series
from dopd_proto.telemetry import Forecast, SeriesForecast

UNFITTED = Arma(difference=1, ma=(-0.7,), reason="not_fitted")
"""Until the first fit of ARIMA is there: smoothing with alpha 0.3."""
FLAT = frozenset({"last", "mean-50", "ewma", "ses", "kalman"})
"""Models that say the same at every horizon."""


@dataclass(slots=True)
class Forecaster:
    """The series, and a track for each of them at each horizon. `fits` are ARIMA's, by series, kept between refits."""

    series: Series
    horizons_bins: tuple[int, ...]
    pool: tuple[str, ...]
    fits: dict[str, Arma] = field(default_factory=dict)
    tracks: dict[tuple[str, int], Track] = field(default_factory=dict)


def advance(state: Forecaster, now_s: float) -> list[Forecast]:
    """Close what can be closed, learn from it, and forecast; nothing while no bin closes. The longest horizon comes
    first, so that who keeps only the newest forecast keeps the shortest."""
    if not state.series.close(now_s):
        return []
    histories = {name: state.series.values(name) for name in SERIES}
    made = {name: _outlooks(state, name, histories[name]) for name in SERIES}
    seen = sum(1 for value in histories["requests_per_s"] if value == value)
    return [_forecast(state, horizon, {name: made[name][horizon] for name in SERIES}, seen)
            for horizon in sorted(state.horizons_bins, reverse=True)]  # fmt: skip


def _outlooks(state: Forecaster, name: str, history: Sequence[float]) -> dict[int, Outlook]:
    """By horizon."""
    series = state.series
    assert series.next_bin is not None, "a bin has been closed"
    known: dict[str, float] = {}
    found = {}
    for horizon in state.horizons_bins:
        track = state.tracks.get((name, horizon))
        if track is None:
            track = state.tracks[name, horizon] = choose.start(state.pool, horizon)
        for first in choose.due(track, series.next_bin):
            choose.settle(track, *series.actual(name, first, horizon))
        fit = state.fits.get(name, UNFITTED)
        points = {model: _point(model, history, horizon, fit, known) for model in track.pool}
        outlook = choose.offer(track, series.next_bin, points, _reason(state, name, history, track, fit))
        found[horizon] = _known_late(outlook, series) if name == "osl_tokens_mean" else outlook
    return found


def _point(model: str, history: Sequence[float], horizon: int, fit: Arma, known: dict[str, float]) -> float:
    if model == ARIMA:
        return arima_mean(fit, history, horizon)
    if model not in FLAT:
        return predict(model, history, horizon)
    if model not in known:
        known[model] = predict(model, history, 1)
    return known[model]


def _reason(state: Forecaster, name: str, history: Sequence[float], track: Track, fit: Arma) -> str:
    """What to beware of, the worst first."""
    if not any(value == value for value in history):
        return "no_requests" if any(v == v for v in state.series.values("requests_per_s")) else "no_history"
    if name in ("decode_work", "osl_tokens_mean") and state.series.osl_from_limit:
        return "osl_from_limit"
    return fit.reason if track.chosen == ARIMA else ""


def _known_late(outlook: Outlook, series: Series) -> Outlook:
    """No answer is longer than its `max_tokens`; while none has ended that is all that is known."""
    limit = series.osl_limit()
    if not limit:
        return outlook
    if series.osl_from_limit:
        return Outlook(outlook.model, limit, (limit,) * len(outlook.quantiles), None, outlook.scored, "osl_from_limit")
    bounded = tuple(min(value, limit) for value in outlook.quantiles)
    point = min(outlook.point, limit)
    return Outlook(outlook.model, point, bounded, outlook.error, outlook.scored, outlook.reason)


def _forecast(state: Forecaster, horizon: int, made: Mapping[str, Outlook], seen: int) -> Forecast:
    """The message. The variance follows from the two moments, which may come from two models: never below 0 (D4)."""
    series = state.series
    assert series.next_bin is not None, "a bin has been closed"
    rate, mean = made["requests_per_s"], made["isl_tokens_mean"].point
    return Forecast(
        start_s=series.next_bin * series.bin_s,
        horizon_s=horizon * series.bin_s,
        model=rate.model,
        requests_per_s=rate.point,
        isl_tokens_mean=mean,
        isl_tokens_var=max(0.0, made["isl_square_mean"].point - mean * mean),
        osl_tokens_mean=made["osl_tokens_mean"].point,
        bins=seen,
        bin_s=series.bin_s,
        reason=rate.reason,
        quantile_levels=choose.LEVELS,
        series=tuple(
            SeriesForecast(
                name=name, model=one.model, point=one.point, quantiles=one.quantiles, error=one.error,
                scored=one.scored, reason=one.reason,
            )
            for name, one in made.items()
        ),
    )  # fmt: skip
