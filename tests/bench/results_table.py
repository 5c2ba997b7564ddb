"""The tables of docs/results.md from the JSON files of results.sh: `python -m tests.bench.results_table FILE ...`.

A cell: goodput in requests/s, attainment in %, and with several seeds the 95 % interval of the difference to the first
policy's goodput, in % of that. Files of the same load, rates and seeds become one table.
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
    return title + "\n".join(lines) + f"\n\nSeeds {seeds}; commit `{config.versions['commit'][:7]}`.\n"


def cell(found: Comparison, policy: str, rate: float) -> str:
    """Goodput (attainment), and the interval to the reference."""
    rows = by_seed(found, policy, rate)
    goodput = {seed: row.goodput_rps for seed, row in rows.items()}
    said = f"{mean(goodput.values()):.1f} ({100 * mean(row.attainment for row in rows.values()):.1f})"
    reference = {seed: row.goodput_rps for seed, row in by_seed(found, found.config.reference, rate).items()}
    apart = paired(goodput, reference)
    if apart is None or apart.low is None or apart.high is None or policy == found.config.reference:
        return said
    scale = 100 / mean(reference.values())
    return f"{said} {scale * apart.low:+.0f} … {scale * apart.high:+.0f}"


def by_seed(found: Comparison, policy: str, rate: float) -> dict[int, Row]:
    """The rows of one policy at one rate."""
    return {row.seed: row for row in found.rows if row.policy == policy and row.rate_scale == rate}


def joined(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those of the same arrivals as one, in the order of the first of each."""
    found: dict[object, Comparison] = {}
    for one in comparisons:
        arrivals = tuple(sorted((load.trace, load.profile, load.rate_scale, load.seed) for load in one.loads))
        before = found.get(arrivals)
        found[arrivals] = one if before is None else msgspec.structs.replace(before, rows=[*before.rows, *one.rows])
    return list(found.values())


if __name__ == "__main__":
    print("\n".join(table(one) for one in joined([read(Path(name)) for name in sys.argv[1:]])))
