"""What a series does next: models of bins of equal width behind `predict`. Pure arithmetic, no library.

Consumes the values of past bins, oldest first; produces the mean expected over the coming bins, in the series' unit.
Level models are fitted on the finest bins and their level is carried to the horizon ("fine", workloads.md 2.4). The
`block-…` models see the past in blocks as long as the horizon instead: what swings within a horizon is no news to them.
"""

import math
from collections.abc import Callable, Sequence

WINDOW = 50
"""Bins that a model sees (algorithms.md 1.8: 50 samples)."""
EWMA_ALPHA = 0.3
ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""At most 0.5: beyond, a burst is taken for the new level (workloads.md 2.4, 4)."""
BETAS = (0.02, 0.05, 0.1, 0.2)
DAMPING = (0.8, 0.9, 0.98)
SIGNAL_SHARES = (0.0005, 0.002, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Variance of the level's step over that of the noise. 1.0 is a gain of 0.62."""
TOP_SHARE = 3.0
"""No forecast beyond three times the most that was seen (algorithms.md 1.8)."""


def predict(model: str, history: Sequence[float], horizon_bins: int) -> float:
    """Mean over the next `horizon_bins` bins, in [0, 3 x the largest value seen]; 0 without history.

    Values that are not finite are left out: such a bin was not seen. Raises KeyError for a model that is not in
    `MODELS` (ARIMA needs a fit beforehand, see `arma`).
    """
    if horizon_bins < 1:
        raise ValueError(f"horizon_bins is {horizon_bins}, not 1 or more")
    seen = [value for value in history if math.isfinite(value)]
    if not seen:
        return 0.0
    return bounded(MODELS[model](seen, horizon_bins), seen)


def bounded(value: float, seen: Sequence[float]) -> float:
    """The value within what a sum of arrivals can be; one that is not finite gives way to the last value."""
    if not math.isfinite(value):
        value = seen[-1]
    return min(max(0.0, value), TOP_SHARE * max(0.0, *seen[-WINDOW:]))


# --------------------------------------------------------------------------------------------------------- level models


def last(seen: Sequence[float], horizon: int) -> float:
    """The last bin: what a forecaster has to beat."""
    return seen[-1]


def mean(seen: Sequence[float], horizon: int) -> float:
    """Of the last 50 bins."""
    some = seen[-WINDOW:]
    return sum(some) / len(some)


def ewma(seen: Sequence[float], horizon: int) -> float:
    """Exponentially weighted, alpha 0.3. The first bins count by how many they are, so the first is no anchor."""
    level, weight = 0.0, 0.0
    for value in seen[-WINDOW:]:
        weight = EWMA_ALPHA + (1 - EWMA_ALPHA) * weight
        level += (EWMA_ALPHA / weight) * (value - level)
    return level


def ses(seen: Sequence[float], horizon: int) -> float:
    """Simple exponential smoothing: the alpha with the least squared one-step errors."""
    return _smoothed(seen[-WINDOW:])[0]


def _smoothed(seen: Sequence[float]) -> tuple[float, float]:
    """Level and alpha."""
    first = sum(seen[:5]) / len(seen[:5])
    best, best_cost, best_alpha = first, math.inf, ALPHAS[0]
    for alpha in ALPHAS:
        level, cost = first, 0.0
        for value in seen:
            error = value - level
            cost += error * error
            level += alpha * error
        if cost < best_cost:
            best, best_cost, best_alpha = level, cost, alpha
    return best, best_alpha


def holt(seen: Sequence[float], horizon: int) -> float:
    """Holt's linear trend, damped: level + slope * (phi + … + phi^h), its mean over the horizon."""
    seen = seen[-WINDOW:]
    if len(seen) < 4:
        return mean(seen, horizon)
    found, cost_least = (seen[-1], 0.0, 1.0), math.inf
    start = sum(seen[:3]) / 3
    for alpha in ALPHAS[1::2]:
        for beta in BETAS:
            for phi in DAMPING:
                level, slope, cost = start, 0.0, 0.0
                for value in seen:
                    ahead = level + phi * slope
                    error = value - ahead
                    cost += error * error
                    level = ahead + alpha * error
                    slope = phi * slope + alpha * beta * error
                if cost < cost_least:
                    found, cost_least = (level, slope, phi), cost
    level, slope, phi = found
    reach = total = 0.0
    for step in range(1, horizon + 1):
        reach += phi**step
        total += reach
    return level + slope * total / horizon


def theta(seen: Sequence[float], horizon: int) -> float:
    """Theta 0 and 2 (Assimakopoulos and Nikolopoulos 2000): SES with half the straight line's slope as drift.

    By Hyndman and Billah (2003): level + slope/2 * (h - 1 + (1 - (1 - alpha)^n) / alpha), its mean over the horizon.
    """
    seen = seen[-WINDOW:]
    n = len(seen)
    if n < 3:
        return mean(seen, horizon)
    centre = (n - 1) / 2
    slope = sum((at - centre) * value for at, value in enumerate(seen)) * 12 / (n * (n * n - 1))
    level, alpha = _smoothed(seen)
    return level + slope / 2 * ((horizon - 1) / 2 + (1 - (1 - alpha) ** n) / alpha)


TIE = 1e-9
"""Log-likelihoods as near as this are equal: of two values every share says the same, but for rounding."""


def kalman(seen: Sequence[float], horizon: int) -> float:
    """Local level (random walk seen through noise), variances by likelihood, diffuse start: SES whose first gains are
    large, so that few bins suffice."""
    seen = seen[-WINDOW:]
    best, best_cost = seen[0], math.inf
    for share in SIGNAL_SHARES:
        level, variance, squares, logs = seen[0], 1.0, 0.0, 0.0
        for value in seen[1:]:
            variance += share
            whole = variance + 1.0
            error = value - level
            squares += error * error / whole
            logs += math.log(whole)
            gain = variance / whole
            level += gain * error
            variance = gain
        steps = len(seen) - 1
        if not steps or squares <= 0:
            return level  # one value, or all alike
        cost = steps * math.log(squares / steps) + logs
        if cost < best_cost - TIE:
            best, best_cost = level, cost
    return best


# --------------------------------------------------------------------------------------------------------------- blocks


def blocks(seen: Sequence[float], horizon: int) -> list[float]:
    """Means of `horizon` bins each, the last block ending with the last bin. What does not fill a block is left out."""
    spare = len(seen) % horizon
    return [sum(seen[at : at + horizon]) / horizon for at in range(spare, len(seen), horizon)]


def _in_blocks(inner: Callable[[Sequence[float], int], float]) -> Callable[[Sequence[float], int], float]:
    def model(seen: Sequence[float], horizon: int) -> float:
        return inner(blocks(seen, horizon) or [mean(seen, 1)], 1)

    return model


MODELS: dict[str, Callable[[Sequence[float], int], float]] = {
    "last": last,
    "mean-50": mean,
    "ewma": ewma,
    "ses": ses,
    "holt": holt,
    "theta": theta,
    "kalman": kalman,
    "block-last": _in_blocks(last),
    "block-mean": _in_blocks(mean),
    "block-ses": _in_blocks(ses),
}
"""Those that need no fit beforehand. At a horizon of one bin a block is a bin, and the `block-…` add nothing."""
