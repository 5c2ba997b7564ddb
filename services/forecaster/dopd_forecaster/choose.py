"""Which model forecasts a series at a horizon, how good it was of late, and how far off it may be. Pure.

Consumes the models' forecasts and, once the horizon is over, what came; produces an `Outlook`. Constants were chosen on
the first halves of real traces (docs/forecasting.md).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEVELS = (0.1, 0.5, 0.9, 0.95)
DEFAULT_POOL = ("last", "mean-50", "ewma", "ses", "kalman", "block-ses")
HALF_LIFE_BINS = 100
MARGIN = 0.03
"""A model takes over when its loss is smaller by this, so that equals do not alternate."""
PRIOR_BINS, PRIOR_MOST_HORIZON = 30, 6
"""The expected losses below count as 30 bins times the horizon in bins, up to 6: horizons overlap and repeat each
other, so evidence comes that much slower. Beyond, an hour would not be enough to learn anything."""
RESIDUALS = 100
LEAST = 20
"""With fewer residuals than this the tails are drawn out (see `quantiles`)."""
SHORT_HISTORY = 10
WIDE = 0.25
"""Before anything is known, residuals on the square-root scale of +-25 % of the forecast's root: -44 to +56 %."""

# Expected loss over that of the best, at one bin, some bins and many bins. Others are taken as 1.2, 1.3, 2.
PRIORS: dict[str, tuple[float, float, float]] = {
    "kalman": (1.0, 1.03, 1.5),
    "ses": (1.01, 1.03, 1.5),
    "theta": (1.04, 1.15, 2.0),
    "holt": (1.04, 1.15, 2.0),
    "arima": (1.04, 1.05, 1.5),
    "ewma": (1.05, 1.15, 1.7),
    "last": (1.2, 1.6, 2.5),
    "mean-50": (1.2, 1.15, 1.0),
    "block-ses": (1.01, 1.02, 1.0),
    "block-mean": (1.2, 1.15, 1.0),
    "block-last": (1.2, 1.2, 1.05),
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """`quantiles` at `LEVELS`, never negative and never falling. `error` is the chosen model's recent sum of absolute
    errors over the sum of what came; None while nothing has come. `scored` counts finished horizons."""

    model: str
    point: float
    quantiles: tuple[float, ...]
    error: float | None
    scored: int
    reason: str


@dataclass(slots=True)
class Track:
    """One series at one horizon."""

    horizon_bins: int
    pool: tuple[str, ...]
    chosen: str
    loss: dict[str, float]
    bins: float = 0.0
    came: float = 0.0
    scored: int = 0
    pending: deque[tuple[int, Mapping[str, float]]] = field(default_factory=deque)
    residuals: dict[str, deque[float]] = field(default_factory=dict)


def start(pool: Sequence[str], horizon_bins: int) -> Track:
    """Before anything is known the model is the pool's best by experience."""
    usable = tuple(model for model in pool if horizon_bins > 1 or not model.startswith("block-"))
    usable = usable or ("ses",)
    first = min(usable, key=lambda model: _prior(model, horizon_bins))
    residuals = {model: deque[float](maxlen=RESIDUALS) for model in usable}
    return Track(horizon_bins, usable, first, dict.fromkeys(usable, 0.0), residuals=residuals)


def _prior(model: str, horizon_bins: int) -> float:
    place = 0 if horizon_bins == 1 else 1 if horizon_bins <= 10 else 2
    return PRIORS.get(model, (1.2, 1.3, 2.0))[place]


def due(track: Track, next_bin: int) -> list[int]:
    """First bins of the forecasts whose horizon is over."""
    return [first for first, _ in track.pending if first + track.horizon_bins <= next_bin]


def settle(track: Track, actual: float, weight: float) -> None:
    """What came of the oldest forecast that is open; NaN when it was not seen, and nothing is learnt."""
    _, points = track.pending.popleft()
    if not (math.isfinite(actual) and weight > 0):
        return
    kept = 0.5 ** (1 / HALF_LIFE_BINS)
    track.scored += 1
    track.bins = kept * track.bins + 1
    track.came = kept * track.came + weight * actual
    for model, point in points.items():
        track.loss[model] = kept * track.loss[model] + weight * abs(point - actual)
        track.residuals[model].append(math.sqrt(max(0.0, actual)) - math.sqrt(point))
    _choose(track)


def _choose(track: Track) -> None:
    """The least discounted loss, with experience as pseudo-observations in units of the best model's mean loss."""
    unit = min(track.loss.values()) / track.bins
    if unit <= 0:  # one is perfect, or nothing comes at all: count in the middle's loss
        unit = sorted(track.loss.values())[len(track.loss) // 2] / track.bins
    weight = PRIOR_BINS * min(track.horizon_bins, PRIOR_MOST_HORIZON) * unit
    scores = {model: loss + weight * _prior(model, track.horizon_bins) for model, loss in track.loss.items()}
    best = min(scores, key=lambda model: scores[model])
    if scores[best] < (1 - MARGIN) * scores[track.chosen]:
        track.chosen = best


def offer(track: Track, first_bin: int, points: Mapping[str, float], reason: str = "") -> Outlook:
    """The forecast of the horizon that begins with `first_bin`, from each model's point, kept to be scored."""
    track.pending.append((first_bin, {model: points[model] for model in track.pool}))
    point = points[track.chosen]
    error = track.loss[track.chosen] / track.came if track.came > 0 else None
    reason = reason or ("short_history" if track.scored < SHORT_HISTORY else "")
    return Outlook(track.chosen, point, quantiles(point, track.residuals[track.chosen]), error, track.scored, reason)


def quantiles(point: float, residuals: Sequence[float], levels: Sequence[float] = LEVELS) -> tuple[float, ...]:
    """Of what will come, from a model's residuals on the square-root scale.

    There the noise of counts is the same at every level (Anscombe), so residuals of a quiet hour serve a busy one; the
    way back cannot fall below zero, and a scale factor passes through. Order statistics at (n + 1) p. With fewer than
    20 residuals two more are put at twice their root mean square (or the quarter of the root, whichever is wider with
    fewer than 5), since the few seen have not shown the tails.
    """
    root = math.sqrt(max(0.0, point))
    known = sorted(residuals)
    if len(known) < LEAST:
        spread = 2 * math.sqrt(sum(r * r for r in known) / len(known)) if known else 0.0
        spread = max(spread, WIDE * root) if len(known) < 5 else spread
        known = sorted([*known, -spread, spread])
    return tuple(max(0.0, root + _order(known, level)) ** 2 for level in levels)


def _order(known: Sequence[float], level: float) -> float:
    place = level * (len(known) + 1) - 1
    if place <= 0:
        return known[0]
    if place >= len(known) - 1:
        return known[-1]
    low = int(place)
    return known[low] + (place - low) * (known[low + 1] - known[low])
