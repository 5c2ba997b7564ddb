"""A comparison as lines of figures: means over seeds, differences, what may be claimed. Consumes a `Comparison`. Pure.

`better` and `worse` are said only where the 95 % interval of the paired difference leaves 0 out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dopd_loadgen.compare.model import Row
from dopd_loadgen.compare.result import BoundRow, Comparison, Found, LoadRow
from dopd_loadgen.compare.statistics import Difference, paired, paired_ratio

MEANS = (
    "goodput_rps", "goodput_tps", "goodput_rps_per_gpu", "attainment", "p50_ttft_s", "p90_ttft_s", "p99_ttft_s",
    "p50_tpot_s", "p90_tpot_s", "p99_tpot_s", "gpu_seconds", "flips", "failed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One policy at one rate: means over its seeds (None where a seed has no sample), and against the reference.

    `best`: no other policy has a larger mean goodput, and one has a smaller. `versus` is the difference in goodput
    (req/s), None for the reference itself and where no seed is shared.
    """

    policy: str
    seeds: int
    means: Mapping[str, float | None]
    gpus: int
    best: bool
    versus: Difference | None


@dataclass(frozen=True, slots=True)
class Step:
    """All policies at one rate, the bound, and the load: means over seeds."""

    rate_scale: float
    offered_rps: float
    lines: tuple[Line, ...]
    bound: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest rate at which a policy attained a target: means over seeds, and the ratio to the reference.

    `kinds` are those of the seeds, see `Found`. `steady`: no seed saw it attained above a rate that missed.
    """

    policy: str
    target: float
    rate_scale: float
    goodput_rps: float
    goodput_rps_per_gpu: float
    kinds: frozenset[str]
    steady: bool
    versus: Difference | None


def steps(comparison: Comparison, trace: str, profile: str) -> list[Step]:
    """By rate, policies in the order of the command line."""
    rows = [row for row in comparison.rows if (row.trace, row.profile) == (trace, profile)]
    return [_step(comparison, trace, profile, rate, rows) for rate in sorted({row.rate_scale for row in rows})]


def largest(comparison: Comparison, trace: str, profile: str) -> list[Largest]:
    """What the search found, by target and policy."""
    found = [one for one in comparison.goodput if (one.trace, one.profile) == (trace, profile)]
    made = []
    for target in comparison.config.targets:
        by_policy = {p: [f for f in found if (f.policy, f.target) == (p, target)] for p in comparison.config.policies}
        reference = _rates(by_policy.get(comparison.config.reference, []))
        for policy, ones in by_policy.items():
            if ones:
                versus = None if policy == comparison.config.reference else paired_ratio(_rates(ones), reference)
                made.append(_largest(policy, target, ones, versus))
    return made


def losses(comparison: Comparison, trace: str, profile: str, ours: str, theirs: str) -> list[tuple[float, Difference]]:
    """Rates at which one policy's mean goodput is below another's, and by how much."""
    found = []
    for step in steps(comparison, trace, profile):
        rows = [row for row in comparison.rows if (row.trace, row.profile) == (trace, profile)]
        by_seed = [_by_seed(rows, step.rate_scale, policy) for policy in (ours, theirs)]
        difference = paired(*by_seed)
        if difference is not None and difference.mean < 0:
            found.append((step.rate_scale, difference))
    return found


def _step(comparison: Comparison, trace: str, profile: str, rate: float, rows: Sequence[Row]) -> Step:
    config = comparison.config
    here = [row for row in rows if row.rate_scale == rate]
    by_policy = {p: own for p in config.policies if (own := [row for row in here if row.policy == p])}
    goodputs = [mean(row.goodput_rps for row in own) for own in by_policy.values()]
    least, most = min(goodputs), max(goodputs)
    reference = _by_seed(rows, rate, config.reference)
    lines = []
    for policy, own in by_policy.items():
        versus = None if policy == config.reference else paired(_by_seed(rows, rate, policy), reference)
        means = {name: _mean_of(own, name) for name in MEANS}
        best = mean(row.goodput_rps for row in own) == most > least
        lines.append(Line(policy, len(own), means, own[0].gpus, best, versus))

    def there(one: LoadRow | BoundRow) -> bool:
        return (one.trace, one.profile, one.rate_scale) == (trace, profile, rate)

    bounds = [one for one in comparison.bounds if there(one)]
    names = ("goodput_rps", "goodput_tps", "attainment")
    limit = {name: mean(getattr(one, name) for one in bounds) for name in names} if bounds else None
    loads = [one.offered_rps for one in comparison.loads if there(one)]
    return Step(rate, mean(loads) if loads else 0.0, tuple(lines), limit)


def _largest(policy: str, target: float, ones: Sequence[Found], versus: Difference | None) -> Largest:
    return Largest(
        policy=policy,
        target=target,
        rate_scale=mean(one.rate_scale for one in ones),
        goodput_rps=mean(one.goodput_rps for one in ones),
        goodput_rps_per_gpu=mean(one.goodput_rps_per_gpu for one in ones),
        kinds=frozenset(one.kind for one in ones),
        steady=all(one.monotone for one in ones),
        versus=versus,
    )


def _rates(ones: Sequence[Found]) -> dict[int, float]:
    return {one.seed: one.rate_scale for one in ones}


def _by_seed(rows: Sequence[Row], rate: float, policy: str) -> dict[int, float]:
    return {row.seed: row.goodput_rps for row in rows if (row.rate_scale, row.policy) == (rate, policy)}


def _mean_of(rows: Sequence[Row], name: str) -> float | None:
    get: Callable[[Row], float | None] = lambda row: getattr(row, name)  # noqa: E731  # a name for the type
    values = [value for row in rows if (value := get(row)) is not None]
    return mean(values) if len(values) == len(rows) else None


def mean(values: Iterable[float]) -> float:
    """Of at least one."""
    listed = list(values)
    return sum(listed) / len(listed)
