"""`dopd-loadgen report RESULT...`, and what a run does at its end. Consumes results; produces tables, plots, a page."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from dopd.errors import LoadError
from dopd_loadgen.goodput import parse_goodput
from dopd_loadgen.model import Run
from dopd_loadgen.report.files import write_whole
from dopd_loadgen.report.result import Stored, load, store, write_result
from dopd_loadgen.report.summary import METRICS, PERCENTILES, Settings
from dopd_loadgen.report.table import show
from dopd_loadgen.report.verdict import share, verdict

REPORT = "report.html"


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `run`."""
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="result folder or JSON, vLLM's as well")
    parser.add_argument("-o", "--output-dir", type=Path, help=f"write the plots and {REPORT} there")
    parser.add_argument("--goodput", nargs="+", metavar="KEY:MS", help="judge by other targets than the run had")
    add_figure_arguments(parser)


def add_figure_arguments(parser: ArgumentParser) -> None:
    """Which figures to show, and which attainment to insist on: for `report` and for a run alike."""
    parser.add_argument("--percentile-metrics", type=_metrics, default=METRICS, metavar="LIST", help=",".join(METRICS))
    parser.add_argument(
        "--metric-percentiles", type=_percentiles, default=PERCENTILES, metavar="LIST", help="default 50,90,95,99"
    )
    parser.add_argument(
        "--assert-attainment", type=share, metavar="SHARE", help="exit with 1 if less than this share met all targets"
    )


def settings_of(args: Namespace) -> Settings:
    """What `add_figure_arguments` read."""
    return Settings(metrics=args.percentile_metrics, percentiles=args.metric_percentiles)


def run(args: Namespace) -> int:
    """Show results one by one or side by side. 1: an asserted attainment was missed; 2: a file cannot be used."""
    try:
        stored = [one for path in args.results for one in load(path, settings_of(args))]
        if args.goodput:
            stored = [aimed(one, args.goodput) for one in stored]
        show(stored)
        if args.output_dir is not None:
            compare(stored, args.output_dir)
        return _verdicts(stored, args.assert_attainment)
    except LoadError as error:
        print(f"dopd-loadgen report: {error}", file=sys.stderr)
        return 2


def finish(run: Run, settings: Settings, folder: Path | None, detailed: bool, metadata: Mapping[str, str]) -> Stored:
    """The end of a run: print its table and write its files. Raises LoadError where they cannot be written.

    What was measured is written first; a picture that fails costs no figure.
    """
    stored = store(run, settings)
    if folder is not None:
        write_result(stored, folder, detailed, metadata)
    show([stored])
    if folder is not None:
        compare([stored], folder)
    return stored


def compare(stored: Sequence[Stored], folder: Path) -> list[Path]:
    """Write plots (PNG and SVG) and the page of one or more results; gives the files. Raises LoadError."""
    from dopd_loadgen.report.canvas import png, svg
    from dopd_loadgen.report.html import page
    from dopd_loadgen.report.plots import pictures  # matplotlib, half a second that not everybody needs

    drawn = pictures(stored)
    contents = {folder / f"{one.name}.png": png(one) for one in drawn}
    contents |= {folder / f"{one.name}.svg": svg(one) for one in drawn}
    contents[folder / REPORT] = page(stored, drawn).encode()
    for path, data in contents.items():
        write_whole(path, data)
    return list(contents)


def aimed(stored: Stored, goodput: Sequence[str]) -> Stored:
    """The same run judged by other targets. Raises LoadError for a result without its requests."""
    if stored.run is None or not stored.run.records:
        raise LoadError(stored.where, "other targets need the requests, and this result has none (requests.jsonl)")
    aim = parse_goodput(goodput)
    other = msgspec.structs.replace(stored.run, slo_ttft_s=aim.ttft_s, slo_tpot_s=aim.tpot_s, slo_e2e_s=aim.e2e_s)
    return store(other, stored.settings, stored.where)


def _verdicts(stored: Sequence[Stored], wanted: float | None) -> int:
    if wanted is None:
        return 0
    codes = []
    for one in stored:
        if one.summary is None:
            raise LoadError(one.where, "attainment can be asserted of results of dopd-loadgen only")
        codes.append(verdict(one.summary, wanted, one.label))
    return max(codes)


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in METRICS]:
        raise ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(METRICS)}")
    return names


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        values = tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 100 for value in values):
        raise ArgumentTypeError(f"{text!r}: give numbers above 0, up to 100, such as 50,90,99.9")
    return values
