"""When requests arrive: Poisson, gamma, Markov-modulated, wandering, diurnal, in steps or on a ramp.

`Arrivals` consume a generator and a duration and produce ascending times in [0, duration), in seconds. All but the
steady ones draw a rate over time first, and then put a renewal process of mean gap 1 on the integral of that rate
(time rescaling; with exponential gaps it is the inhomogeneous Poisson process). A longer run begins as a shorter one of
the same seed does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dopd.errors import LoadError

Times = NDArray[np.float64]
Arrivals = Callable[[Generator, float], Times]
REQUESTS_LIMIT = 10_000_000
"""Requests of one plan: about 2 GB of memory."""
_GAPS = 4096


@dataclass(frozen=True, slots=True)
class Curve:
    """A rate over time as a staircase: `rates_rps[i]` from `edges_s[i]` to `edges_s[i + 1]`."""

    edges_s: Times
    rates_rps: Times

    def work(self) -> Times:
        """Expected requests from the start to each edge."""
        return np.concatenate(([0.0], np.cumsum(np.diff(self.edges_s) * self.rates_rps)))


Rate = Callable[[Generator, float], Curve]
"""Draws a rate for a duration (seconds)."""


def gaps(rng: Generator, burstiness: float, count: int, rate_rps: float = 1.0) -> Times:
    """Gamma gaps with mean 1/rate and shape `burstiness`: 1 is Poisson, less is burstier (`vllm bench serve`'s words).

    Their coefficient of variation is 1/sqrt(burstiness).
    """
    return rng.gamma(burstiness, 1.0 / (burstiness * rate_rps), count)


def renewal(rng: Generator, burstiness: float, until: float) -> Times:
    """Points in [0, until) with gamma gaps of mean 1, in equilibrium: `until` points are expected.

    The first point is a part of a length-biased gap. Beginning with a whole one would add (1/burstiness - 1)/2 points.
    """
    enough(until)
    first = rng.random() * rng.gamma(burstiness + 1.0, 1.0 / burstiness)
    found, at = [np.array([first])], first
    while at < until:
        some = at + np.cumsum(gaps(rng, burstiness, _GAPS))
        found.append(some)
        at = float(some[-1])
    points = np.concatenate(found)
    within: Times = points[points < until]
    return within


def steady(rate_rps: float, burstiness: float = 1.0) -> Arrivals:
    """A constant rate. Raises LoadError."""
    positive(rate_rps=rate_rps)
    bursty(burstiness)

    def draw(rng: Generator, duration_s: float) -> Times:
        return renewal(rng, burstiness, rate_rps * duration_s) / rate_rps

    return draw


def varying(rate: Rate, burstiness: float = 1.0) -> Arrivals:
    """A renewal process of the given burstiness on a rate that changes. Raises LoadError."""
    bursty(burstiness)

    def draw(rng: Generator, duration_s: float) -> Times:
        rate_rng, gap_rng = rng.spawn(2)
        curve = rate(rate_rng, duration_s)
        work = curve.work()
        points = renewal(gap_rng, burstiness, float(work[-1]))
        # Where the rate is 0 the work stands still: the inverse jumps over it, to the far side.
        step = np.searchsorted(work, points, side="right") - 1
        return curve.edges_s[step] + (points - work[step]) / curve.rates_rps[step]

    return draw


def markov(rates_rps: Sequence[float], moves: Sequence[Sequence[float]], step_s: float) -> Rate:
    """A Markov chain of rates: every `step_s` it goes from level i to j with probability `moves[i][j]`.

    It starts as it is in the long run. Raises LoadError for a matrix that is not one of probabilities.
    """
    positive(step_s=step_s)
    levels, chain = np.array(rates_rps, float), np.array(moves, float)
    if (
        chain.shape != (len(levels), len(levels))
        or (chain < 0).any()
        or not np.allclose(chain.sum(1), 1, atol=1e-3)
        or not (np.isfinite(levels).all() and (levels >= 0).all() and (levels > 0).any())
    ):
        raise LoadError("markov", "needs rates >= 0, one of them > 0, and a row of probabilities for each")
    upto = np.cumsum(chain / chain.sum(1, keepdims=True), axis=1)
    start = np.cumsum(at_rest(chain))

    def draw(rng: Generator, duration_s: float) -> Curve:
        count = steps_of(duration_s, step_s)
        chances = rng.random(count)
        state, states = int(np.searchsorted(start, chances[0])), np.empty(count, int)
        for step, chance in enumerate(chances):
            if step:
                state = int(np.searchsorted(upto[state], chance))
            states[step] = state = min(state, len(levels) - 1)
        return staircase(levels[states], step_s, duration_s)

    return draw


def at_rest(chain: NDArray[np.float64]) -> NDArray[np.float64]:
    """The long-run shares of a chain's states."""
    size = len(chain)
    system = np.vstack([chain.T - np.eye(size), np.ones(size)])
    shares: NDArray[np.float64] = np.linalg.lstsq(system, np.array([0.0] * size + [1.0]), rcond=None)[0].clip(0)
    whole: NDArray[np.float64] = shares / shares.sum()
    return whole


def modulated(rates_rps: Sequence[float], stays_s: Sequence[float]) -> Rate:
    """The rate of a Markov-modulated Poisson process: states in turn, each for an exponential time."""
    if len(rates_rps) != len(stays_s) or len(rates_rps) < 2:
        raise LoadError("mmpp", "needs two or more rates and as many stays")
    positive(**{f"stays {number}": stay_s for number, stay_s in enumerate(stays_s, 1)})
    not_negative(**{f"rates {number}": rate for number, rate in enumerate(rates_rps, 1)})

    def draw(rng: Generator, duration_s: float) -> Curve:
        edges, rates = [0.0], []
        state = int(rng.choice(len(stays_s), p=np.array(stays_s) / sum(stays_s)))
        while edges[-1] < duration_s:
            edges.append(edges[-1] + rng.exponential(stays_s[state]))
            rates.append(rates_rps[state])
            state = (state + 1) % len(stays_s)
            enough(len(rates))
        return Curve(np.array([*edges[:-1], duration_s]), np.array(rates, float))

    return draw


def wandering(rate_rps: float, cv: float, memory_s: float, step_s: float = 5.0) -> Rate:
    """A rate that drifts about its mean: the logarithm is an Ornstein-Uhlenbeck process. Raises LoadError.

    The rate is log-normal with this mean and coefficient of variation; its logarithm's autocorrelation falls to 1/e
    in `memory_s`.
    """
    positive(rate_rps=rate_rps, memory_s=memory_s, step_s=step_s)
    not_negative(cv=cv)
    sigma, keep = math.sqrt(math.log1p(cv * cv)), math.exp(-step_s / memory_s)

    def draw(rng: Generator, duration_s: float) -> Curve:
        shocks = rng.standard_normal(steps_of(duration_s, step_s))
        shocks[1:] *= math.sqrt(1 - keep * keep)
        level, levels = 0.0, np.empty(len(shocks))
        for step, shock in enumerate(shocks):
            levels[step] = level = keep * level + shock
        return staircase(rate_rps * np.exp(sigma * levels - sigma * sigma / 2), step_s, duration_s)

    return draw


def diurnal(rate_rps: float, amplitude: float, period_s: float) -> Rate:
    """A sine about the mean that starts at the trough; peak / trough = (1 + amplitude) / (1 - amplitude)."""
    positive(rate_rps=rate_rps, period_s=period_s)
    if not 0 <= amplitude <= 1:
        raise LoadError("amplitude", f"{amplitude} is not in [0, 1]")

    def draw(rng: Generator, duration_s: float) -> Curve:
        step_s = period_s / 500
        middle_s = (np.arange(steps_of(duration_s, step_s)) + 0.5) * step_s
        return staircase(rate_rps * (1 - amplitude * np.cos(2 * np.pi * middle_s / period_s)), step_s, duration_s)

    return draw


def steps(rates_rps: Sequence[float], every_s: float) -> Rate:
    """One rate after the other, each for `every_s`, over and over. Raises LoadError."""
    positive(every_s=every_s)
    not_negative(**{f"rates {number}": rate for number, rate in enumerate(rates_rps, 1)})
    if not any(rates_rps):
        raise LoadError("step", "needs a rate above 0")

    def draw(rng: Generator, duration_s: float) -> Curve:
        return staircase(np.resize(np.array(rates_rps, float), steps_of(duration_s, every_s)), every_s, duration_s)

    return draw


def ramp(from_rps: float, to_rps: float, over_s: float) -> Rate:
    """A straight line from one rate to another, which then stays. Raises LoadError."""
    positive(over_s=over_s)
    not_negative(from_rps=from_rps, to_rps=to_rps)
    if from_rps == to_rps == 0:
        raise LoadError("ramp", "needs a rate above 0")

    def draw(rng: Generator, duration_s: float) -> Curve:
        step_s = over_s / 500
        share = (np.arange(steps_of(min(duration_s, over_s), step_s)) + 0.5) / 500
        line = staircase(from_rps + (to_rps - from_rps) * share, step_s, min(duration_s, over_s))
        if duration_s <= over_s:
            return line
        return Curve(np.append(line.edges_s, duration_s), np.append(line.rates_rps, to_rps))

    return draw


def staircase(rates_rps: Times, step_s: float, duration_s: float) -> Curve:
    """Steps of one length; the last may be cut."""
    return Curve(np.append(np.arange(len(rates_rps)) * step_s, duration_s), rates_rps)


def steps_of(duration_s: float, step_s: float) -> int:
    """How many steps fill the duration. Raises LoadError when they would not fit into memory."""
    return max(1, math.ceil(enough(duration_s / step_s) - 1e-9))


def enough(count: float) -> float:
    """The count, when it is one that a plan can hold. Raises LoadError."""
    if not count <= REQUESTS_LIMIT:
        raise LoadError(
            "--duration-s", f"about {count:.3g} requests or steps, the limit is {REQUESTS_LIMIT}; make the load shorter"
        )
    return count


def bursty(burstiness: float) -> None:
    """Raises LoadError for a gamma shape that cannot be drawn from: far below 0.01 nearly all gaps are 0."""
    if not 0.01 <= burstiness <= 1e6:
        raise LoadError("--burstiness", f"{burstiness} is not in [0.01, 1e6]; 1 is Poisson, less is burstier")


def positive(**values: float) -> None:
    """Raises LoadError for a value that is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise LoadError(name, f"{value} is not above 0")


def not_negative(**values: float) -> None:
    """Raises LoadError for a value that is not a finite number of 0 or more."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise LoadError(name, f"{value} is not 0 or more")
