"""`dopd forecast FILE|PRESET...`: back-test the forecaster's models.

Consumes traces, presets and tables of rates; prints tables, writes JSON, a page and pictures.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dopd.errors import ConfigError, LoadError
from dopd.perf.profile import named
from dopd_forecaster.arma import ARIMA
from dopd_forecaster.choose import DEFAULT_POOL
from dopd_forecaster.service import checked_models
from dopd_loadgen.forecasting import source, summary
from dopd_loadgen.forecasting.backtest import Result, backtest
from dopd_loadgen.forecasting.source import Case, Pace
from dopd_loadgen.report.files import write_whole
from dopd_loadgen.workload import WorkloadSpec, plan
from dopd_loadgen.workload.description import PRESET_S

PROFILE = "h200-llama-3.1-8b-fp8-tp1"
SAY_EVERY_S = 5.0


def main(argv: Sequence[str]) -> int:
    """The command: 0, or 2 with the reason on stderr; 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        return run(args)
    except (LoadError, ConfigError) as error:
        print(f"dopd forecast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """All flags."""
    made = argparse.ArgumentParser(
        prog="dopd forecast",
        description="Back-test all models and the online choice on traces: at every bin forecast from the past alone.",
    )
    made.add_argument("sources", nargs="+", metavar="FILE|PRESET", help="traces, presets, or tables of rates")
    made.add_argument("--horizons", type=_seconds, metavar="S,…", help="default 10,60,300 (tables: their own)")
    made.add_argument("--bin-s", type=float, default=10.0, metavar="S", help="width of a bin of requests (10)")
    made.add_argument(
        "--half", choices=("first", "second", "all"), default="second",
        help="which half is scored; models and rules were chosen on the first, so the second (default) is new to them",
    )  # fmt: skip
    made.add_argument("--models", type=_names, default=DEFAULT_POOL, metavar="A,B", help="what the online choice is of")
    made.add_argument(
        "--arima-stride", type=int, default=30, metavar="N", help="fit ARIMA every N bins; 0: leave it out"
    )
    made.add_argument("--profile", default=PROFILE, metavar="NAME", help=f"turns lengths into work ({PROFILE})")
    made.add_argument("--decode-profile", metavar="NAME", help="the same for decode work, if it is another")
    made.add_argument("--short-tokens", type=int, default=128, metavar="N", help="prompts below are ultra-short (128)")
    made.add_argument("--ttft-s", type=float, default=0.5, help="answers begin so late (0.5) …")
    made.add_argument(
        "--tpot-s", type=float, default=0.03, help="… and take so long per token (0.03): when OSL is known"
    )
    made.add_argument("--start-s", type=float, default=0.0, help="seconds of the source to leave out")
    made.add_argument("--duration-s", type=float, help=f"how long; presets have no end and default to {PRESET_S:g}")
    made.add_argument("--sort", action="store_true", help="sort rows that are not in order of time")
    made.add_argument("--servegen-model", metavar="NAME", help="which model of a servegen file")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    made.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables and pictures")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write the pictures as PNG and SVG")
    made.add_argument("--quiet", action="store_true", help="no progress")
    return made


def run(args: argparse.Namespace) -> int:
    """One source after the other, then all together."""
    args.models = checked_models(args.models)
    if args.arima_stride < 0 or args.bin_s <= 0 or args.tpot_s < 0 or args.ttft_s < 0:
        raise LoadError("command line", "--arima-stride, --bin-s, --ttft-s and --tpot-s may not be negative")
    if ARIMA in args.models and not args.arima_stride:
        raise LoadError("--models", "arima needs --arima-stride above 0")
    if args.arima_stride:
        from dopd_forecaster import arima

        arima.check()
    found: list[tuple[Case, list[Result]]] = []
    for name in args.sources:
        case = _case(name, args)
        horizons = _bins(args.horizons, case)
        with _progress(case.title, args.quiet) as tell:
            results = backtest(case, horizons, args.half, args.models, args.arima_stride, tell)
        found.append((case, results))
        _print(case, results, args.half)
    if len(found) > 1:
        _print_all([one for _, results in found for one in results])
    _write(found, args)
    return 0


def _case(name: str, args: argparse.Namespace) -> Case:
    path = Path(name)
    if path.is_file() and source.is_table(path):
        return source.of_table(path, args.servegen_model)
    spec = WorkloadSpec(
        source=name, sort=args.sort, servegen_model=args.servegen_model, start_s=args.start_s,
        duration_s=args.duration_s, seed=args.seed,
    )  # fmt: skip
    if spec.path is None and spec.duration_s is None:
        spec = WorkloadSpec(source=name, start_s=args.start_s, duration_s=PRESET_S, seed=args.seed)
    profile = named(args.profile)
    profiles = (profile, named(args.decode_profile) if args.decode_profile else profile)
    return source.of_requests(name, plan(spec), args.bin_s, profiles, args.short_tokens, Pace(args.ttft_s, args.tpot_s))


def _bins(horizons_s: Sequence[float] | None, case: Case) -> list[int]:
    """Raises LoadError for a horizon that is no multiple of a bin, or longer than a quarter of the source."""
    if horizons_s is None:
        return [bins for bins in case.horizons_bins if bins <= case.bins // 4] or [1]
    found = []
    for horizon_s in horizons_s:
        bins = round(horizon_s / case.bin_s)
        if bins < 1 or abs(bins * case.bin_s - horizon_s) > 1e-6 * horizon_s:
            raise LoadError("--horizons", f"{horizon_s:g} s is no multiple of a bin of {case.bin_s:g} s ({case.title})")
        if bins > case.bins // 4:
            raise LoadError("--horizons", f"{horizon_s:g} s is more than a quarter of {case.title}")
        found.append(bins)
    return found


# --- what is shown ----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A line on stderr every few seconds; a short run says nothing."""
    next_s = time.monotonic() + SAY_EVERY_S

    def tell(done: int, of: int) -> None:
        nonlocal next_s
        if not quiet and time.monotonic() >= next_s:
            next_s = time.monotonic() + SAY_EVERY_S
            print(f"{title}: {done} of {of} bins", file=sys.stderr, flush=True)

    yield tell


def _print(case: Case, results: Sequence[Result], half: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    wape, spread = summary.wape_header(results), summary.spread_header()
    for title, header, rows in (
        (f"{case.title}: WAPE (%), {half} half, {case.bins} bins of {case.bin_s:g} s", wape,
         summary.wape_rows(results)),
        ("Online choice: scaled error, quantiles", spread, summary.spread_rows(results)),
    ):  # fmt: skip
        table = Table(title=title, title_justify="left", box=None)
        for place, name in enumerate(header):
            table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    print(summary.verdict(results))


def _print_all(results: Sequence[Result]) -> None:
    """Over all sources, and for each horizon by itself: long ones have few independent windows."""
    print("\nall sources:", summary.verdict(results))
    for horizon_s in sorted({one.horizon_s for one in results}):
        print(f"  {horizon_s:g} s:", summary.verdict([one for one in results if one.horizon_s == horizon_s]))


def _write(found: Sequence[tuple[Case, list[Result]]], args: argparse.Namespace) -> None:
    if args.json is not None:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "html", "plots", "quiet")}
        cases = [
            summary.as_json(results, {"source": case.title, "bin_s": case.bin_s, "bins": case.bins})
            for case, results in found
        ]
        data = {"settings": json.loads(json.dumps(settings, default=str)), "cases": cases}
        write_whole(args.json, json.dumps(data, indent=2).encode())
    if args.html is None and args.plots is None:
        return
    from dopd_loadgen.forecasting.picture import pictures
    from dopd_loadgen.report.canvas import png, svg
    from dopd_loadgen.report.html import document, figure, numbers, row

    body: list[Any] = ["<h1>Forecasts</h1>"]
    for place, (case, results) in enumerate(found, 1):
        drawn = pictures(results, case.bin_s, Path(case.title).name)
        named_apart = f"-{place}" if len(found) > 1 else ""
        for picture in drawn if args.plots is not None else ():
            write_whole(args.plots / f"{picture.name}{named_apart}.png", png(picture))
            write_whole(args.plots / f"{picture.name}{named_apart}.svg", svg(picture))
        body += [
            f"<h2>{Path(case.title).name}</h2>",
            numbers(summary.wape_header(results), map(row, summary.wape_rows(results)), f"WAPE (%), {args.half} half"),
            numbers(summary.spread_header(), map(row, summary.spread_rows(results)), summary.verdict(results)),
            '<div class="plots">', *map(figure, drawn), "</div>",
        ]  # fmt: skip
    if args.html is not None:
        write_whole(args.html, document("Forecasts", body).encode())


def _seconds(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds above 0, such as 10,60,300")
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))
