"""The `dopd-loadgen` command: `run`, `sim`, `report`, `trace describe`.

Consumes the command line; produces figures, files and an exit code: 0; 1 when an asserted attainment was missed; 2 for
what cannot be run or read; 130 after a Ctrl-C that ended the program.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from dopd import config as configs
from dopd.config import Config
from dopd.errors import ConfigError, LoadError
from dopd.obs.log import logs_from
from dopd.runtime.main import add_config_argument
from dopd_loadgen import arguments, live, progress
from dopd_loadgen.collector import collector, send_client_spans
from dopd_loadgen.drive import Progress
from dopd_loadgen.goodput import Goodput, parse_goodput
from dopd_loadgen.model import Run
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.provenance import versions
from dopd_loadgen.report import command as report
from dopd_loadgen.report.verdict import verdict
from dopd_loadgen.sim import Simulation, simulate
from dopd_loadgen.tracing import write_chrome_trace, write_otlp_json
from dopd_loadgen.workload import Schedule, describe, plan
from dopd_loadgen.workload.description import add_arguments as add_describe
from dopd_loadgen.workload.description import run as describe_source

DEFAULT_GOODPUT = ("ttft:2000", "tpot:80")
SIM_TOKEN_IDS = (3, 32_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    args = parser().parse_args(argv)
    try:
        with logs_from("warning"):
            return int(args.run(args))
    except (LoadError, ConfigError) as error:
        print(f"dopd-loadgen: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> ArgumentParser:
    """All commands."""
    top = ArgumentParser(prog="dopd-loadgen", description="Drives LLM servers in the open, and measures honestly.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "send a workload at a served system")
    live.add_arguments(run)
    sim = _command(commands, "sim", _sim, "send it at the virtual cluster: the same services on emulated GPUs")
    _add_cluster(sim)
    for each in (run, sim):
        arguments.add_workload(each)
        arguments.add_measure(each)
        arguments.add_output(each)
    report.add_arguments(_command(commands, "report", report.run, "show results, one or several side by side"))
    trace = commands.add_parser("trace", help="look at a trace").add_subparsers(required=True, metavar="COMMAND")
    add_describe(_command(trace, "describe", describe_source, "rate, burstiness, lengths, and a picture"))
    return top


def _command(commands: Any, name: str, run: Callable[[Namespace], int], what: str) -> ArgumentParser:
    made: ArgumentParser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    made.set_defaults(run=run)
    return made


# --- run and sim ------------------------------------------------------------------------------------------------------


def _run(args: Namespace) -> int:
    schedule = plan(arguments.workload_of(args), live.counter_of(args))
    with _shown(args, schedule) as tell:
        run = live.measured(args, schedule, _goodput(args, DEFAULT_GOODPUT), tell)
    return _finish(run, schedule, args)


def _sim(args: Namespace) -> int:
    config = _config(args)
    schedule = plan(arguments.workload_of(args))
    low, high = SIM_TOKEN_IDS
    simulation = Simulation(
        config=config,
        seed=args.seed,
        prompt=lambda planned: token_prompt(planned, args.seed, low, high),
        timeout_s=args.timeout,
        span_s=schedule.span_s,
        label=args.label or "",
    )
    with _shown(args, schedule) as tell:
        run = simulate(schedule, simulation, tell)
    return _finish(run, schedule, args)


def _goodput(args: Namespace, default: Sequence[str]) -> Goodput:
    return parse_goodput(args.goodput or default)


def _shown(args: Namespace, schedule: Schedule) -> AbstractContextManager[Callable[[Progress], None]]:
    return nullcontext(lambda _: None) if args.quiet else progress.shown(schedule.span_s)


def _finish(run: Run, schedule: Schedule, args: Namespace) -> int:
    spec = arguments.workload_of(args)
    whole = msgspec.structs.replace(
        run,
        warmup_s=args.warmup,
        cooldown_s=args.cooldown,
        workload=describe(spec, schedule),
        settings=arguments.settings_of(args),
        versions=versions(),
    )
    folder = arguments.folder_of(args, whole)
    stored = report.finish(whole, report.settings_of(args), folder, args.save_detailed, dict(args.metadata))
    if folder is not None:
        print(f"written to {folder}")
    if args.traces_out is not None:
        _write_traces(whole, args.traces_out)
    if whole.api != "virtual" and (url := collector()):
        _report_spans(whole, url)
    if args.assert_attainment is None:
        return 130 if whole.interrupted else 0
    assert stored.summary is not None
    return verdict(stored.summary, args.assert_attainment)


def _report_spans(run: Run, url: str) -> None:
    """A collector that is away costs its spans, not the run."""
    try:
        send_client_spans(run, url)
    except LoadError as error:
        print(f"dopd-loadgen: {error}", file=sys.stderr)


def _write_traces(run: Run, path: Path) -> None:
    if path.name.endswith(".otlp.json"):
        write_otlp_json(run, path)
        print(f"spans (OTLP/JSON) in {path}")
    else:
        write_chrome_trace(run, path)
        print(f"spans in {path}: open it at https://ui.perfetto.dev")


# --- the virtual cluster ----------------------------------------------------------------------------------------------


def _add_cluster(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("virtual cluster")
    add_config_argument(parser)
    group.add_argument("--prefill", type=int, metavar="N", help="workers that begin with the role prefill")
    group.add_argument("--decode", type=int, metavar="N", help="workers that begin with the role decode")
    group.add_argument("--profile", metavar="NAME", help="the emulated GPU and model")
    group.add_argument("--policy", metavar="NAME", help="who decides")


def _config(args: Namespace) -> Config:
    """The file and the environment, then the flags. Raises ConfigError."""
    config = configs.load(args.config)
    goodput = _goodput(args, (f"ttft:{config.slo.ttft_s * 1e3:g}", f"tpot:{config.slo.tpot_s * 1e3:g}"))
    for section, values in (
        ("cluster", {"prefill": args.prefill, "decode": args.decode}),
        ("engine", {"profile": args.profile}),
        ("policy", {"name": args.policy}),
        ("slo", {"ttft_s": goodput.ttft_s, "tpot_s": goodput.tpot_s}),
    ):
        given = {key: value for key, value in values.items() if value is not None}
        changed = _replaced(getattr(config, section), section, given)
        config = msgspec.structs.replace(config, **{section: changed})
    return config


def _replaced(part: Any, section: str, given: dict[str, Any]) -> Any:
    try:
        return msgspec.convert({**msgspec.to_builtins(part), **given}, type(part))
    except msgspec.ValidationError as error:
        raise ConfigError("command line", f"[{section}]", str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
