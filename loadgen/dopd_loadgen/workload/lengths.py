"""How long prompts and answers are: fixed, uniform, log-normal, bimodal, mixed, or by a table of quantiles.

`Lengths` consume a generator and a count and produce that many whole numbers of tokens, each at least 1.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_loadgen.workload.arrivals import not_negative, positive

Tokens = NDArray[np.int64]
Lengths = Callable[[Generator, int], Tokens]
TOKENS_LIMIT = 10_000_000
"""More tokens than any model's context."""


def whole(values: NDArray[np.float64], limit: float = TOKENS_LIMIT) -> Tokens:
    """Rounded, and clipped to [1, limit]."""
    return np.clip(np.rint(values), 1, min(limit, TOKENS_LIMIT)).astype(np.int64)


def fixed(tokens: int) -> Lengths:
    """Always the same. Raises LoadError."""
    _within(tokens)
    return lambda rng, count: np.full(count, tokens, np.int64)


def uniform(low: int, high: int) -> Lengths:
    """Any of low to high, both included. Raises LoadError."""
    _within(low)
    _within(high)
    if low > high:
        raise LoadError("uniform", f"low {low} is above high {high}")
    return lambda rng, count: rng.integers(low, high + 1, count)


def lognormal(mu: float, sigma: float, limit: float = TOKENS_LIMIT) -> Lengths:
    """exp of a normal; `mu` is the logarithm of the median. Raises LoadError."""
    not_negative(mu=mu, sigma=sigma)
    positive(max=limit)
    return lambda rng, count: whole(np.exp(mu + sigma * rng.standard_normal(count)), limit)


def lognormal_of(mean: float, p50: float, limit: float = TOKENS_LIMIT) -> Lengths:
    """The log-normal of this mean and median: sigma = sqrt(2 ln(mean/p50)). Raises LoadError."""
    positive(mean=mean, p50=p50)
    if mean < p50:
        raise LoadError("lognormal", f"the mean {mean} is below the median {p50}: no log-normal is so")
    return lognormal(math.log(p50), math.sqrt(2 * math.log(mean / p50)), limit)


def mixed(parts: Sequence[tuple[float, Lengths]]) -> Lengths:
    """Each request is of one part, by the parts' weights. Raises LoadError."""
    positive(**{f"weight {number}": weight for number, (weight, _) in enumerate(parts, 1)})
    upto = np.cumsum([weight for weight, _ in parts]) / sum(weight for weight, _ in parts)

    def draw(rng: Generator, count: int) -> Tokens:
        which = np.searchsorted(upto, rng.random(count), side="right")
        drawn: Tokens = np.stack([part(rng, count) for _, part in parts])[which, np.arange(count)]
        return drawn

    return draw


def bimodal(low: float, high: float, share: float, sigma: float = 0.3) -> Lengths:
    """Two log-normal humps with medians `low` and `high`; `share` of the requests are of the high one."""
    positive(low=low, high=high)
    if not 0 < share < 1:
        raise LoadError("bimodal", f"the share {share} is not between 0 and 1")
    return mixed([(1 - share, lognormal(math.log(low), sigma)), (share, lognormal(math.log(high), sigma))])


def quantiles(shares: Sequence[float], tokens: Sequence[float]) -> Lengths:
    """By points of the cumulative curve from share 0 to 1, with straight lines between them. Raises LoadError."""
    upto, values = np.array(shares, float), np.array(tokens, float)
    if len(upto) != len(values) or len(upto) < 2:
        raise LoadError("quantiles", f"{len(upto)} shares and {len(values)} tokens; needs two or more of each")
    if upto[0] != 0 or upto[-1] != 1 or not (np.diff(upto) > 0).all() or not (np.diff(values) >= 0).all():
        raise LoadError("quantiles", "needs ascending shares from 0 to 1, and tokens that never fall")
    _within(values[0])
    _within(values[-1])
    return lambda rng, count: whole(np.interp(rng.random(count), upto, values))


def _within(tokens: float) -> None:
    if not 1 <= tokens <= TOKENS_LIMIT:
        raise LoadError("length", f"{tokens} tokens is not in [1, {TOKENS_LIMIT}]")
