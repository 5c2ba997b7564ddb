"""Rolling-origin back-test: at every bin all models forecast from what was seen by then; the truth is what they meet.

Consumes a `Case`; produces `Score`s per series, horizon and model. What is scored is one half of the bins, usually the
second: models, pool and rules were chosen on the first.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dopd_forecaster import choose
from dopd_forecaster.arma import ARIMA, Arma, arima_mean
from dopd_forecaster.core import FLAT, UNFITTED
from dopd_forecaster.models import MODELS, predict
from dopd_loadgen.forecasting.source import Case, actual

Half = Literal["first", "second", "all"]
ONLINE = "online"


@dataclass(slots=True)
class Moment:
    """One forecast of the online choice and what came: for the picture."""

    first_bin: int
    actual: float
    point: float
    quantiles: tuple[float, ...]


@dataclass(slots=True)
class Score:
    """One model on one series at one horizon, over `n` origins.

    `wape` is the sum of absolute errors over the sum of what came, `mase` the mean absolute error over that of "last"
    in the first half, `pinball` the mean pinball loss over the quantile levels, and over the mean of what came;
    `covered` the share below each quantile.
    """

    n: int = 0
    wape: float = math.nan
    mase: float = math.nan
    pinball: float = math.nan
    covered: tuple[float, ...] = ()


@dataclass(slots=True)
class Result:
    """One series at one horizon."""

    series: str
    horizon_s: float
    floor: float
    scores: dict[str, Score]
    chosen: Counter[str]
    moments: list[Moment] = field(default_factory=list)

    def best(self) -> str:
        """The fixed model that was best in hindsight."""
        fixed = {name: score.wape for name, score in self.scores.items() if name != ONLINE}
        return min(fixed, key=lambda name: fixed[name])

    def ratio(self) -> float:
        """The online choice's error over that of the best fixed model; NaN where nothing came."""
        best = self.scores[self.best()].wape
        return self.scores[ONLINE].wape / best if best else math.nan


@dataclass(slots=True)
class _Sum:
    error: float = 0.0
    weight: float = 0.0
    came: float = 0.0
    pinball: float = 0.0
    below: list[int] = field(default_factory=lambda: [0] * len(choose.LEVELS))
    n: int = 0


@dataclass(slots=True)
class _Open:
    """One series at one horizon on the way."""

    track: choose.Track
    every: choose.Track
    sums: dict[str, _Sum]
    naive: _Sum = field(default_factory=_Sum)
    floor: float = 0.0
    chosen: Counter[str] = field(default_factory=Counter)
    moments: list[Moment] = field(default_factory=list)


def backtest(
    case: Case,
    horizons_bins: Sequence[int],
    half: Half = "second",
    pool: Sequence[str] = choose.DEFAULT_POOL,
    arima_stride: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Result]:
    """`arima_stride`: fit ARIMA every so many bins, 0 leaves it out. `tell` hears how many bins are done."""
    models = (*MODELS, *((ARIMA,) if arima_stride else ()))
    tracks = {(name, h): _opened(h, pool, models) for name in case.truth for h in horizons_bins}
    fits: dict[str, Arma] = {}
    for origin in range(1, case.bins):
        case.feed.step()
        if arima_stride and origin % arima_stride == 0:
            fits |= _fitted(case)
        for name in case.truth:
            history = case.feed.values(name)
            known: dict[str, float] = {}
            for horizon in horizons_bins:
                one = tracks[name, horizon]
                _settle(one, case, name, origin)
                points = {m: _point(m, history, horizon, fits.get(name, UNFITTED), known) for m in one.every.pool}
                _score(one, case, name, origin, points, half)
        tell(origin, case.bins - 1)
    return [_result(case, name, h, one) for (name, h), one in tracks.items()]


def _opened(horizon: int, pool: Sequence[str], models: Sequence[str]) -> _Open:
    every = choose.start(models, horizon)
    return _Open(choose.start(pool, horizon), every, {name: _Sum() for name in (ONLINE, *every.pool)})


def _fitted(case: Case) -> dict[str, Arma]:
    from dopd_forecaster import arima

    return {name: arima.fit(case.feed.values(name)) for name in case.truth}


def _point(model: str, history: Sequence[float], horizon: int, fit: Arma, known: dict[str, float]) -> float:
    if model == ARIMA:
        return arima_mean(fit, history, horizon)
    if model in FLAT and model in known:
        return known[model]
    known[model] = predict(model, history, 1 if model in FLAT else horizon)
    return known[model]


def _settle(one: _Open, case: Case, name: str, origin: int) -> None:
    """What the forecaster itself could have learnt by now."""
    for track in (one.track, one.every):
        for first in choose.due(track, origin):
            choose.settle(track, *case.feed.actual(name, first, track.horizon_bins))


def _score(one: _Open, case: Case, name: str, origin: int, points: dict[str, float], half: Half) -> None:
    horizon = one.track.horizon_bins
    outlook = choose.offer(one.track, origin, points)
    choose.offer(one.every, origin, points)
    if origin + horizon > case.bins:
        return
    came, weight, floor = actual(case.truth[name], name, origin, horizon)
    if math.isnan(came) or not weight:
        return
    middle = case.bins // 2
    if origin + horizon <= middle:
        _add(one.naive, came, weight, points["last"], ())
    if not _inside(origin, origin + horizon, middle, half):
        return
    one.floor += floor * weight
    one.chosen[outlook.model] += 1
    _add(one.sums[ONLINE], came, weight, outlook.point, outlook.quantiles)
    one.moments.append(Moment(origin, came, outlook.point, outlook.quantiles))
    for model, point in points.items():
        _add(one.sums[model], came, weight, point, choose.quantiles(point, one.every.residuals[model]))


def _inside(first: int, end: int, middle: int, half: Half) -> bool:
    """The first half may not look into the second."""
    return half == "all" or (end <= middle if half == "first" else first >= middle)


def _add(to: _Sum, came: float, weight: float, point: float, quantiles: Sequence[float]) -> None:
    to.n += 1
    to.error += weight * abs(point - came)
    to.came += weight * came
    to.weight += weight
    for place, (level, value) in enumerate(zip(choose.LEVELS, quantiles, strict=False)):
        to.pinball += weight * (level * (came - value) if came > value else (1 - level) * (value - came))
        to.below[place] += came <= value


def _result(case: Case, name: str, horizon: int, one: _Open) -> Result:
    naive = one.naive.error / one.naive.weight if one.naive.weight else math.nan
    scores = {model: _scored(found, naive) for model, found in one.sums.items()}
    came = one.sums[ONLINE].came
    return Result(name, horizon * case.bin_s, one.floor / came if came else math.nan, scores, one.chosen, one.moments)


def _scored(found: _Sum, naive: float) -> Score:
    if not found.n or not found.came:
        return Score(found.n)
    return Score(
        n=found.n,
        wape=found.error / found.came,
        mase=found.error / found.weight / naive if naive else math.nan,
        pinball=found.pinball / len(choose.LEVELS) / found.came,
        covered=tuple(below / found.n for below in found.below),
    )
