"""The tables of docs/results.md from the JSON files of results.sh: `python -m tests.bench.results_table FILE ...`.

A cell: goodput in requests/s, attainment in %, and with several seeds the 95 % interval of the difference to the first
policy's goodput, in % of that. Files of the same load, rates and seeds become one table; with `--by-workers` they
are of one load and several numbers of workers.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import msgspec

from dopd_loadgen.compare.model import Row
from dopd_loadgen.compare.result import Comparison, read
from dopd_loadgen.compare.statistics import paired


def table(found: Comparison) -> str:
    """One Markdown table of a file with one trace and one profile."""
    rates = sorted({row.rate_scale for row in found.rows})
    offered = {rate: mean(load.offered_rps for load in found.loads if load.rate_scale == rate) for rate in rates}
    head = "| policy | " + " | ".join(f"{offered[rate]:.1f} requests/s offered" for rate in rates) + " |"
    lines = [head, "|---" * (len(rates) + 1) + "|"]
    for policy in dict.fromkeys(row.policy for row in found.rows):
        lines.append(f"| {policy} | " + " | ".join(cell(found, policy, rate) for rate in rates) + " |")
    bounds = [[bound.goodput_rps for bound in found.bounds if bound.rate_scale == rate] for rate in rates]
    lines.append("| *bound* | " + " | ".join(f"{mean(each):.1f}" if each else "" for each in bounds) + " |")
    row, config = found.rows[0], found.config
    title = f"### {row.trace}, `{row.profile}`, {row.gpus} GPUs\n\n"
    seeds = ", ".join(str(seed) for seed in config.seeds)
    made = f"\n\nSeeds {seeds}; commit `{config.versions['commit'][:7]}`.\n"
    return title + "\n".join(lines) + made + (largest_rates(found) if found.goodput else latencies(found, rates))


def cell(found: Comparison, policy: str, rate: float) -> str:
    """Goodput (attainment), and the interval to the reference."""
    rows = by_seed(found, policy, rate)
    if not rows:
        return ""
    goodput = {seed: row.goodput_rps for seed, row in rows.items()}
    said = f"{mean(goodput.values()):.1f} ({100 * mean(row.attainment for row in rows.values()):.1f})"
    reference = {seed: row.goodput_rps for seed, row in by_seed(found, found.config.reference, rate).items()}
    apart = paired(goodput, reference)
    if apart is None or apart.low is None or apart.high is None or policy == found.config.reference:
        return said
    scale = 100 / mean(reference.values())
    return f"{said} {scale * apart.low:+.0f} … {scale * apart.high:+.0f}"


def latencies(found: Comparison, rates: Sequence[float]) -> str:
    """Goodput per GPU, P50 and P90, and flips, at the rate in the middle; means over the seeds."""
    rate = rates[len(rates) // 2]
    lines = [f"\nLatencies of completed requests at a rate of {rate:g}:\n"]
    lines += [
        "| policy | good requests/s/GPU | TTFT P50, P90 s | TPOT P50, P90 ms | flips | failed |",
        "|---|---|---|---|---|---|",
    ]
    for policy in dict.fromkeys(row.policy for row in found.rows):
        rows = list(by_seed(found, policy, rate).values())
        if not rows:
            continue
        ttft, tpot = ([_mean(rows, f"p{p}_{which}_s") for p in (50, 90)] for which in ("ttft", "tpot"))
        times = f"{ttft[0]:.2f}, {ttft[1]:.2f} | {1000 * tpot[0]:.0f}, {1000 * tpot[1]:.0f}"
        counts = f"{_mean(rows, 'flips'):.0f} | {_mean(rows, 'failed'):.0f}"
        lines.append(f"| {policy} | {_mean(rows, 'goodput_rps_per_gpu'):.2f} | {times} | {counts} |")
    return "\n".join(lines) + "\n"


def largest_rates(found: Comparison) -> str:
    """Goodput at the largest rate that attains each target."""
    targets = sorted({one.target for one in found.goodput})
    lines = [
        "\n| policy | " + " | ".join(f"at {target:.0%}" for target in targets) + " |",
        "|---" * (len(targets) + 1) + "|",
    ]
    for policy in dict.fromkeys(one.policy for one in found.goodput):
        per = {t: mean(o.goodput_rps for o in found.goodput if (o.policy, o.target) == (policy, t)) for t in targets}
        lines.append(f"| {policy} | " + " | ".join(f"{per[target]:.1f}" for target in targets) + " |")
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Row], name: str) -> float:
    return mean(float(getattr(row, name) or 0.0) for row in rows)


def by_seed(found: Comparison, policy: str, rate: float) -> dict[int, Row]:
    """The rows of one policy at one rate."""
    return {row.seed: row for row in found.rows if row.policy == policy and row.rate_scale == rate}


def joined(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Each with those of its arrivals that come after it."""
    found: list[Comparison] = []
    for one in comparisons:
        place = next((place for place, first in enumerate(found) if ground(one) <= ground(first)), None)
        if place is None:
            found.append(one)
            continue
        first, names = found[place], ("rows", "prepared", "details", "goodput")
        parts = {name: [*getattr(first, name), *getattr(one, name)] for name in names}
        policies = dict.fromkeys([*first.config.policies, *one.config.policies])
        config = msgspec.structs.replace(first.config, policies=list(policies))
        found[place] = msgspec.structs.replace(first, config=config, **parts)
    return found


def ground(found: Comparison) -> set[tuple[str, str, float, int, int]]:
    """Which schedules they are, and for how many workers."""
    workers = found.config.workers
    return {(load.trace, load.profile, load.rate_scale, load.seed, workers) for load in found.loads}


def by_workers(comparisons: Sequence[Comparison]) -> str:
    """What each number of workers attains of the same arrivals, in %."""
    comparisons = sorted(comparisons, key=lambda one: one.config.workers)
    first = comparisons[0]
    row, load = first.rows[0], first.loads[0]
    assert all(one.loads[0].offered_rps == load.offered_rps for one in comparisons), "one load"
    head = [f"{one.config.workers} workers ({one.rows[0].gpus} GPUs)" for one in comparisons]
    lines = ["| policy | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for policy in first.config.policies:
        cells = [f"{100 * by_seed(one, policy, load.rate_scale)[load.seed].attainment:.1f}" for one in comparisons]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    made = f"Seed {load.seed}; commit `{first.config.versions['commit'][:7]}`."
    title = f"### {row.trace}, `{row.profile}`, {load.offered_rps:.1f} requests/s offered"
    return "\n\n".join((title, "\n".join(lines), made)) + "\n"


if __name__ == "__main__":
    files = [read(Path(name)) for name in sys.argv[1:] if name != "--by-workers"]
    print(by_workers(files) if "--by-workers" in sys.argv else "\n".join(table(one) for one in joined(files)))
