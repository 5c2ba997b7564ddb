"""The command `dopd profile`: measures an engine into a profile file. `dopd profile check` is check_command.py's.

Consumes the command line; produces the file, a table of the fit and its error, and an exit code: 0; 2 for what cannot
be run; 130 after Ctrl-C, which leaves no half of a file.
"""

import asyncio
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from dopd.errors import ConfigError, EngineError, LoadError
from dopd.obs.log import logs_from
from dopd.perf.fit import fit
from dopd.perf.points import PointsFile, write_points
from dopd.perf.profile import Profile
from dopd_loadgen.arguments import count
from dopd_loadgen.profiling import check_command
from dopd_loadgen.profiling.bar import counted
from dopd_loadgen.profiling.choice import Choice, add_engine, chosen
from dopd_loadgen.profiling.grid import Scene, grid
from dopd_loadgen.profiling.measure import WARM_UP_ROUNDS, arrival_s, measure
from dopd_loadgen.profiling.subject import Subject, loop_of
from dopd_loadgen.provenance import versions


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    words = list(sys.argv[1:] if argv is None else argv)
    check = words[:1] == ["check"]
    run = check_command.run if check else _run
    args = (check_command.parser() if check else parser()).parse_args(words[check:])
    try:
        with logs_from("warning"):
            return run(args)
    except (LoadError, ConfigError, EngineError) as error:
        print(f"dopd profile: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> ArgumentParser:
    """The arguments of measuring."""
    made = ArgumentParser(
        prog="dopd profile",
        description="Measure the step times of an engine and write a profile file.",
        epilog="`dopd profile check FILE` compares the engine with its emulation by such a file. See docs/profiles.md.",
    )
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the profile file, FILE.csv")
    made.add_argument("--name", metavar="NAME", help="the profile's name (default: the file's)")
    made.add_argument("--repeats", type=count, default=5, metavar="N", help="rounds that count (default 5)")
    made.add_argument("--quiet", action="store_true", help="no progress display")
    group = made.add_argument_group("grid")
    group.add_argument("--grid", choices=("small", "full"), default="full", help="how many sizes of each kind of step")
    group.add_argument("--grid-prompt", type=count, metavar="N", help="no prompt or context longer than N tokens")
    group.add_argument("--grid-batch", type=count, metavar="N", help="no more than N requests together")
    add_engine(made)
    return made


def _run(args: Namespace) -> int:
    if args.output.suffix != ".csv":
        raise LoadError("--output", f"{args.output} is no .csv, and a profile file is told by that")
    if not args.output.parent.is_dir():
        raise LoadError("--output", f"there is no folder {args.output.parent}")
    file = _measured(chosen(args), args)
    profile = fit(file)
    part = args.output.with_name(f".{args.output.name}.part")
    try:
        write_points(part, file)
        part.replace(args.output)
    except OSError as error:
        raise LoadError("--output", f"{args.output} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    print("\n".join(said(profile, file)))
    print(f"written to {args.output}; `dopd profile check {args.output}` compares engine and emulation")
    return 0


def _measured(choice: Choice, args: Namespace) -> PointsFile:
    with asyncio.Runner(loop_factory=loop_of(real=choice.real)) as runner:
        subject = runner.run(choice.start())
        try:
            scenes = grid(subject.limits, args.grid, args.grid_prompt or 0, args.grid_batch or 0)
            with counted("measuring", len(scenes) * (WARM_UP_ROUNDS + args.repeats), args.quiet) as tell:
                return runner.run(_file(subject, scenes, args, tell))
        finally:
            runner.run(subject.engine.stop())


async def _file(subject: Subject, scenes: Sequence[Scene], args: Namespace, tell: Callable[[int], None]) -> PointsFile:
    points = await measure(subject, scenes, args.repeats, tell)
    head = {
        "name": args.name or args.output.stem,
        "source": _source(args),
        **subject.meta,
        "arrival_s": await arrival_s(subject, scenes, points, args.repeats),
    }
    return PointsFile(head, tuple(points), str(args.output))


def _source(args: Namespace) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time()))
    commit = versions().get("commit", "")
    by = f"`dopd profile --grid {args.grid} --repeats {args.repeats}`"
    return f"measured by {by} on {day}" + (f", commit {commit}" if commit else "")


def said(profile: Profile, file: PointsFile) -> list[str]:
    """The fit in words, one line each."""
    p = profile
    lines = [
        f"{p.name}: {len(file.points)} points",
        f"prefill step  {p.prefill_fixed_s * 1e3:.3f} ms + {p.prefill_token_s * 1e6:.2f} us per token"
        f" + {p.prefill_token2_s * 1e9:.3f} ns per token^2",
        f"decode step   {p.decode_fixed_s * 1e3:.3f} ms + {p.decode_request_s * 1e6:.2f} us per request"
        f" + {p.decode_context_s * 1e9:.2f} ns per token of context",
        f"arrival       {float(file.meta['arrival_s']) * 1e3:.3f} ms per request, beside its steps",
    ]
    for part in profile.fits:
        wide = f"mean {part.mape_pct:.1f} %, worst {part.worst_pct:.1f} %, R2 {part.r2:.4f}"
        lines.append(f"error         {part.phase:<7} {wide} ({part.points} points)")
    return lines
