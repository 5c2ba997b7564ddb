"""The command `dopd profile check`: an engine against its emulation by a profile, on the same requests.

Consumes the command line; produces a table, JSON and plots in a folder, and an exit code: 0; 1 when a limit was missed.
"""

import asyncio
import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from dopd.perf.model import beyond, step_s
from dopd.perf.profile import Profile, named
from dopd_loadgen.arguments import add_workload, count, seconds, workload_of
from dopd_loadgen.model import Run
from dopd_loadgen.profiling.accuracy import as_json, compared, doubts, said
from dopd_loadgen.profiling.bar import counted
from dopd_loadgen.profiling.choice import add_engine, chosen
from dopd_loadgen.profiling.grid import Limits
from dopd_loadgen.profiling.replay import replay
from dopd_loadgen.profiling.subject import Subject, loop_of, sim_subject
from dopd_loadgen.provenance import versions
from dopd_loadgen.report.files import write_whole
from dopd_loadgen.report.result import store
from dopd_loadgen.workload import Schedule, WorkloadSpec, describe, plan
from dopd_loadgen.workload.spec import SYNTHETIC

BUSY_SHARE = 0.25
REQUESTS = 200
MOST_ISL_TOKENS, MOST_OSL_TOKENS = 1024, 128
WARM_UP_REQUESTS = 20
WARM_UP_SEED = 1_000_000


def parser() -> ArgumentParser:
    """The arguments of checking."""
    made = ArgumentParser(
        prog="dopd profile check",
        description="Run an engine and its emulation by a profile on the same requests, and compare latencies.",
    )
    made.add_argument("checked", metavar="PROFILE", help="the profile that is checked: a .csv, a .toml, or a name")
    made.add_argument("--runs", type=count, default=5, metavar="N", help="of each, in turn (default 5)")
    made.add_argument("-o", "--output-dir", type=Path, default=Path("profile-check"), metavar="DIR", help="for results")
    made.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="of a request")
    made.add_argument("--quiet", action="store_true", help="no progress display")
    add_engine(made, with_workload=True)
    add_workload(made)
    return made


def run(args: Namespace) -> int:
    """Compare. Raises LoadError and ConfigError for what cannot be."""
    checked = named(args.checked)
    choice = chosen(args)
    with asyncio.Runner(loop_factory=loop_of(real=choice.real)) as runner:
        subject = runner.run(choice.start())
        try:
            spec = _spec(args, subject.limits, checked)
            schedule = plan(spec)
            engine, emulation = _runs(runner, subject, checked, schedule, args)
        finally:
            runner.run(subject.engine.stop())
    rows = compared(engine, emulation)
    notes = [*_beyond(checked, schedule), *doubts(rows)]
    config = {
        "profile": {key: value for key, value in asdict(checked).items() if key != "fits"},
        "engine": dict(subject.meta),
        "workload": describe(spec, schedule),
        "runs": args.runs,
        "versions": versions(),
        "notes": notes,
    }
    _write(args.output_dir, {"config": config, **as_json(rows)}, engine, emulation)
    print(f"{len(schedule)} requests in {schedule.span_s:g} s, {args.runs} runs of each in turn; ", end="")
    print("engine level: jobs go to the engine itself, without gateway, worker and KV store")
    print("\n".join([*said(rows), *(f"! {note}" for note in notes)]))
    passed = all(row.passed for row in rows)
    print(f"{'within' if passed else 'OUTSIDE of'} the limits; written to {args.output_dir}")
    return 0 if passed else 1


def _runs(
    runner: asyncio.Runner, subject: Subject, checked: Profile, schedule: Schedule, args: Namespace
) -> tuple[list[Run], list[Run]]:
    """Engine, emulation, engine, emulation, … Prompts are others in each pair, and so are no prefix of those before."""
    warm = Schedule(schedule[:WARM_UP_REQUESTS], schedule.span_s, schedule.notes)
    engine: list[Run] = []
    emulation: list[Run] = []
    with counted("runs", 2 * args.runs, args.quiet) as tell:
        runner.run(replay(subject, warm, WARM_UP_SEED, args.timeout, None))
        for number in range(args.runs):
            seed = args.seed + number
            engine.append(runner.run(replay(subject, schedule, seed, args.timeout, None)))
            tell(2 * number + 1)
            emulation.append(_emulated(_like(checked, subject.limits), schedule, seed, args.timeout))
            tell(2 * number + 2)
    return engine, emulation


def _emulated(profile: Profile, schedule: Schedule, seed: int, timeout_s: float) -> Run:
    """One run of the emulation, in virtual time."""

    async def whole() -> Run:
        subject = await sim_subject(profile)
        try:
            return await replay(subject, schedule, seed, timeout_s, None)
        finally:
            await subject.engine.stop()

    with asyncio.Runner(loop_factory=loop_of(real=False)) as runner:
        return runner.run(whole())


def _like(profile: Profile, limits: Limits) -> Profile:
    """With the engine's room for requests and tokens: that is given and not measured."""
    return replace(profile, **asdict(limits))


def _spec(args: Namespace, limits: Limits, profile: Profile) -> WorkloadSpec:
    """What was asked for; without anything, lengths that suit the engine and a rate that it can bear."""
    spec = replace(workload_of(args), max_model_len=args.max_model_len or limits.max_model_len)
    if spec.source != SYNTHETIC or args.arrivals or args.request_rate is not None:
        return spec
    isl, osl = min(MOST_ISL_TOKENS, limits.max_model_len // 8), min(MOST_OSL_TOKENS, limits.max_model_len // 32)
    spec = replace(spec, isl=args.isl or f"lognormal:mean={isl},p50={isl * 3 // 4}", osl=args.osl or str(osl))
    number = REQUESTS if args.num_prompts is None and args.duration_s is None else args.num_prompts
    return replace(spec, request_rate=round(steady_rps(profile, limits, isl, osl), 3), num_prompts=number)


def steady_rps(profile: Profile, limits: Limits, isl_tokens: int, osl_tokens: int) -> float:
    """Requests per second at which a quarter of the engine's places are in use, prompts computed beside decodes."""
    context = isl_tokens + osl_tokens / 2
    batch = max(1.0, BUSY_SHARE * min(limits.max_running, limits.kv_total_tokens / (isl_tokens + osl_tokens)))
    decode_s = osl_tokens * step_s(profile, 0, 0, batch, batch * context) / batch
    prompt_s = step_s(profile, isl_tokens, isl_tokens**2, 0, 0)
    return 1 / (decode_s + prompt_s)


def _beyond(profile: Profile, schedule: Schedule) -> list[str]:
    """Use of the profile far beyond its grid."""
    longest = max(planned.isl_tokens + planned.osl_tokens for planned in schedule)
    return beyond(profile, context_tokens=longest)


def _write(folder: Path, result: dict[str, Any], engine: list[Run], emulation: list[Run]) -> None:
    """`check.json`, and the distributions of both sides, all runs of each together."""
    from dopd_loadgen.report.canvas import png, svg
    from dopd_loadgen.report.plots import pictures  # matplotlib, half a second that not everybody needs

    write_whole(folder / "check.json", (json.dumps(result, indent=1, default=str) + "\n").encode())
    sides = [_together(engine, "engine"), _together(emulation, "emulation")]
    for picture in pictures([store(side) for side in sides]):
        if picture.name.startswith("cdf-"):
            write_whole(folder / f"{picture.name}.png", png(picture))
            write_whole(folder / f"{picture.name}.svg", svg(picture))


def _together(runs: list[Run], label: str) -> Run:
    return msgspec.structs.replace(runs[0], label=label, records=[record for run in runs for record in run.records])
