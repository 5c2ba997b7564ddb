"""`trace describe`: what a trace or a preset is like, as a table and, with `--plot`, as a picture.

Consumes a source as `plan` takes it; prints its `Stats`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dopd.errors import LoadError
from dopd_loadgen.workload.plan import Schedule, plan
from dopd_loadgen.workload.plot import plot
from dopd_loadgen.workload.spec import WorkloadSpec
from dopd_loadgen.workload.stats import LengthStats, Stats, stats_of

if TYPE_CHECKING:
    from rich.table import Table

PRESET_S = 3600.0
"""How much of a source without an end is described, unless it is said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dopd-loadgen trace describe`."""
    parser.add_argument("source", metavar="FILE|PRESET", help="a trace file or the name of a preset")
    parser.add_argument("--format", help="the file's format, when it cannot be told from its content")
    parser.add_argument("--sort", action="store_true", help="sort rows that are not in order of time")
    parser.add_argument("--servegen-model", help="which model of a servegen file")
    parser.add_argument("--start-s", type=float, default=0.0, help="seconds of the source to leave out")
    parser.add_argument("--duration-s", type=float, help=f"how long; presets have no end and default to {PRESET_S:g}")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="times the rate; bursts keep their structure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="OUT", type=Path, help="draw a picture: a .png or .svg file")


def run(args: argparse.Namespace) -> int:
    """Prints the table and draws the picture. Returns 0, or 2 with the reason on standard error."""
    try:
        planned = plan(_spec(args))
        stats = stats_of(planned, planned.span_s)
        _print(table(args.source, stats, planned))
        if args.plot is not None:
            plot(args.source, planned, planned.span_s, args.plot)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str]) -> int:
    """`dopd-loadgen trace describe FILE|PRESET [--plot OUT]`."""
    parser = argparse.ArgumentParser(prog="dopd-loadgen trace describe", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _spec(args: argparse.Namespace) -> WorkloadSpec:
    spec = WorkloadSpec(
        source=args.source, format=args.format, sort=args.sort, servegen_model=args.servegen_model,
        start_s=args.start_s, duration_s=args.duration_s, rate_scale=args.rate_scale, seed=args.seed,
    )  # fmt: skip
    return replace(spec, duration_s=PRESET_S) if spec.path is None and spec.duration_s is None else spec


# --------------------------------------------------------------------------------------------------------------- table


def table(title: str, stats: Stats, planned: Schedule) -> "Table":
    """The figures, one a row, with their units."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(justify="right")
    made.add_column(style="dim")
    for name, value, unit in _rows(stats):
        made.add_row(name, value, unit)
    for what, counted in (("left out", planned.notes.left_out), ("clipped", planned.notes.clipped)):
        for reason, number in counted.items():
            made.add_row(f"{what}: {reason}", f"{number:,}", "")
    return made


def _rows(stats: Stats) -> list[tuple[str, str, str]]:
    return [
        ("requests", f"{stats.requests:,}", f"in {stats.span_s:,.0f} s"),
        ("rate", _number(stats.rate_rps), "requests/s"),
        ("fullest minute", _number(stats.peak_minute_rps), f"requests/s, {_number(stats.peak_to_mean)} x the mean"),
        *[
            (f"dispersion of counts in {window_s} s", _number(value), "variance / mean, 1 for Poisson")
            for window_s, value in stats.dispersion.items()
        ],
        ("variation of the gaps", _number(stats.gap_cv), "standard deviation / mean, 1 for Poisson"),
        *_length_rows("input", stats.isl),
        *_length_rows("output", stats.osl),
        ("input load", _number(stats.input_tps), "tokens/s"),
        ("output load", _number(stats.output_tps), "tokens/s"),
        ("repeated prompt blocks", _percent(stats.repeated_blocks), "of all that have an identity"),
    ]


def _length_rows(name: str, length: LengthStats) -> list[tuple[str, str, str]]:
    points = (length.p5, length.p50, length.p90, length.p99)
    return [
        (f"{name} length", _number(length.mean), "tokens, mean"),
        ("  p5 / p50 / p90 / p99", " / ".join(f"{point:,.0f}" for point in points), f"tokens, at most {length.max:,}"),
        ("  below 128 / below 512", f"{_percent(length.below_128)} / {_percent(length.below_512)}", "of the requests"),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _print(made: "Table") -> None:
    from rich.console import Console

    Console(width=110).print(made)
