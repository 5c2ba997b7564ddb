"""Which rates to run: where policies differ, where the knee is, and the largest rate that attains a target. Pure.

Consumes attainments measured so far by rate; produces the next rate to measure, or what was found. Rates are factors on
the source's own. Nothing is assumed about attainment falling steadily with the rate: what is found lies beside the
largest rate at which it was met, and whether it was missed below is said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST, MOST = 2.0**-6, 2.0**10
ALL_WELL, KNEE, HALF = 0.99, 0.90, 0.50
SAME = 0.005
"""Attainment that rises by less than this when the rate is halved will not rise any more."""
HOPELESS = 0.05
"""Below this a lack of change says nothing: far beyond the range everything is near 0."""
NEAR = 1.3
"""Ends of the range are known to this factor."""
RATES = 7

Attained = Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Range:
    """Where policies differ: all do well at `low`, none at `high`; the best still attains 90 % at `knee`."""

    low: float
    knee: float
    high: float


def next_scout(worst: Attained, best: Attained) -> float | None:
    """The next rate at which to try the scouts; None when the range is known. Both have the same rates.

    What is well depends on the load: where some requests can never meet their targets, 99 % of what is attained at the
    lightest load counts.
    """
    if not worst:
        return 1.0
    if all(share >= HALF * _ceiling(best) for share in best.values()) and max(best) < MOST:
        return max(best) * 2
    if not _low_enough(worst) and min(worst) > LEAST:
        return min(worst) / 2
    found = range_of(worst, best)
    over = _above(worst, found.low)
    under = max((rate for rate in best if rate < found.high), default=found.high)
    for low, high in ((found.low, over), (found.knee, _above(best, found.knee)), (under, found.high)):
        if high > low * NEAR:
            return rounded(math.sqrt(low * high))
    return None


def range_of(worst: Attained, best: Attained) -> Range:
    """The range that these probes show."""
    well, half = ALL_WELL * _ceiling(worst), HALF * _ceiling(best)
    high = min((rate for rate, share in best.items() if share < half), default=max(best))
    low = max((rate for rate, share in worst.items() if share >= well and rate < high), default=min(worst))
    knee = max((rate for rate, share in best.items() if share >= KNEE * _ceiling(best) and rate <= high), default=low)
    return Range(low, knee, high)


def between(found: Range, count: int = RATES) -> list[float]:
    """`count` rates from low to high, each the same factor above the one before."""
    if found.high <= found.low or count < 2:
        return [found.low]
    step = (found.high / found.low) ** (1 / (count - 1))
    return sorted({rounded(found.low * step**number) for number in range(count)})


def next_rate(probed: Attained, target: float, tolerance: float) -> float | None:
    """The next rate to try for the largest one that attains `target`; None when it is known to the tolerance."""
    if not probed:
        return 1.0
    met = [rate for rate, share in probed.items() if share >= target]
    if not met:
        lightest = min(probed)
        return rounded(lightest / 2) if lightest / 2 >= LEAST and not _low_enough(probed) else None
    low = max(met)
    high = _above(probed, low)
    if high == low:
        return rounded(low * 2) if low * 2 <= MOST else None
    middle = rounded(math.sqrt(low * high))
    return middle if high > low * (1 + tolerance) and low < middle < high else None


def largest(probed: Attained, target: float) -> tuple[float, str, bool]:
    """The largest rate that met the target, `found`, `above` or `below`, and whether none below it missed."""
    met = [rate for rate, share in probed.items() if share >= target]
    if not met:
        return 0.0, "below", True
    low = max(met)
    monotone = all(share >= target for rate, share in probed.items() if rate < low)
    return low, "above" if low == max(probed) else "found", monotone


def rounded(rate: float) -> float:
    """To four digits, so that a rate can be written down and given again."""
    return float(f"{rate:.4g}")


def _above(probed: Attained, rate: float) -> float:
    """The next larger rate that was tried, or the same."""
    return min((other for other in probed if other > rate), default=rate)


def _ceiling(probed: Attained) -> float:
    return max(probed.values())


def _low_enough(probed: Attained) -> bool:
    """All is well at the smallest rate, or halving did not help any more."""
    rates = sorted(probed)
    if probed[rates[0]] >= ALL_WELL:
        return True
    if len(rates) <= 2 or rates[0] >= 0.5 or 0 < probed[rates[0]] < HOPELESS:
        return False
    return abs(probed[rates[0]] - probed[rates[1]]) < SAME
