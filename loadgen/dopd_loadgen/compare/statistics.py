"""Paired differences over seeds. Consumes figures by seed; produces a mean and an interval. Pure.

Each seed gives both policies the same arrivals, so what the arrivals do to both drops out of the difference. The
interval is Student's: mean ± t(0.975, n - 1) s / sqrt(n).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t at 0.975 for 1 to 30 degrees of freedom.
T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)  # fmt: skip
_NORMAL_975 = 1.959963985


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of `n` paired differences, with its 95 % confidence interval where there are two or more."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def claim(self) -> int:
        """1: more, -1: less, 0: not shown. Never a claim without an interval that leaves 0 out."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs by seed, over the seeds that both have; None if they share none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return difference([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None


def paired_ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours over theirs by seed: the geometric mean and its interval, less 1, so that 0 is "the same".

    Only seeds at which both are above 0 have a ratio; None if there is none.
    """
    seeds = [seed for seed in sorted(ours.keys() & theirs.keys()) if ours[seed] > 0 and theirs[seed] > 0]
    if not seeds:
        return None
    logs = difference([math.log(ours[seed] / theirs[seed]) for seed in seeds])
    low, high = (None if end is None else math.expm1(end) for end in (logs.low, logs.high))
    return Difference(logs.n, math.expm1(logs.mean), low, high)


def difference(samples: Sequence[float]) -> Difference:
    """Mean and interval of samples (at least one). With one sample there is no interval."""
    n = len(samples)
    mean = math.fsum(samples) / n
    if n < 2:
        return Difference(n, mean)
    deviation = math.sqrt(math.fsum((sample - mean) ** 2 for sample in samples) / (n - 1))
    reach = t_975(n - 1) * deviation / math.sqrt(n)
    return Difference(n, mean, mean - reach, mean + reach)


def t_975(freedom: int) -> float:
    """Student's t at 0.975: a table, beyond it the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = _NORMAL_975
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
