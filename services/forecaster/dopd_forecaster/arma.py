"""Forecasts by a fitted ARIMA: the recursion of D19, without the fit. Pure arithmetic.

Consumes an `Arma`, kept between fits, and the values of past bins; produces the mean over the coming bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dopd_forecaster.models import WINDOW, bounded

ARIMA = "arima"


@dataclass(frozen=True, slots=True)
class Arma:
    """A fitted ARIMA(p, d, q) (D19): differences about `mean` follow `ar` and `ma`. `reason` says what went wrong in
    the fit, "" if nothing."""

    difference: int = 1
    mean: float = 0.0
    ar: tuple[float, ...] = ()
    ma: tuple[float, ...] = ()
    reason: str = ""

    @property
    def order(self) -> tuple[int, int, int]:
        return (len(self.ar), self.difference, len(self.ma))


def arima_mean(fitted: Arma, history: Sequence[float], horizon_bins: int) -> float:
    """Mean over the horizon with the parameters kept and the state brought up to the last bin; bounds as `predict`.

    The shocks follow from the history by recursion. The one before the first is set so that all their squares are the
    least: with a moving average near -1 (a constant mean, differenced) its effect never dies down.
    """
    seen = [value for value in history if math.isfinite(value)][-2 * WINDOW :]
    if not seen:
        return 0.0
    if len(seen) <= fitted.difference:
        return bounded(seen[-1], seen)
    series, tails = list(seen), []
    for _ in range(fitted.difference):
        tails.append(series[-1])
        series = [b - a for a, b in pairwise(series)]
    values = [value - fitted.mean for value in series]
    shocks = _shocks(fitted, values)
    total = 0.0
    for at in range(len(values), len(values) + horizon_bins):
        values.append(_ahead(fitted, values, shocks, at))
        step = values[-1] + fitted.mean
        for place in reversed(range(len(tails))):
            tails[place] += step
            step = tails[place]
        total += step
    return bounded(total / horizon_bins, seen)


def _shocks(fitted: Arma, values: Sequence[float]) -> list[float]:
    """Of every value. They are linear in the one before the first: a + b * before."""
    a: list[float] = []
    for at, value in enumerate(values):
        a.append(value - _ahead(fitted, values, a, at))
    if not fitted.ma:
        return a
    b = [1.0]
    for at in range(1, len(values) + 1):
        b.append(-sum(c * b[at - lag] for lag, c in enumerate(fitted.ma, 1) if at >= lag))
    before = -sum(x * y for x, y in zip(a, b[1:], strict=True)) / sum(x * x for x in b)
    return [x + before * y for x, y in zip(a, b[1:], strict=True)]


def _ahead(fitted: Arma, values: Sequence[float], shocks: Sequence[float], at: int) -> float:
    """What is expected of place `at` of the centred series. Shocks to come are zero."""
    expected = sum(c * values[at - lag] for lag, c in enumerate(fitted.ar, 1) if at >= lag)
    return expected + sum(c * shocks[at - lag] for lag, c in enumerate(fitted.ma, 1) if 0 <= at - lag < len(shocks))
