"""The command line of `dopd compare`, checked as far as can be before anything runs.

Consumes arguments; produces `Asked`: what goes into the result, and the loads and settings behind the names in it.
"""

import math
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from dopd import config as configs
from dopd.config import Config
from dopd.errors import LoadError
from dopd.perf.profile import named
from dopd.policy import POLICIES, policy_named
from dopd.runtime.main import add_config_argument
from dopd_loadgen.arguments import add_shape, count, seconds
from dopd_loadgen.compare import contenders
from dopd_loadgen.compare.model import Setting
from dopd_loadgen.compare.rates import rounded
from dopd_loadgen.compare.result import Wanted
from dopd_loadgen.compare.tasks import spec_for
from dopd_loadgen.goodput import PRESETS, parse_goodput
from dopd_loadgen.model import Planned
from dopd_loadgen.provenance import versions
from dopd_loadgen.workload import WorkloadSpec
from dopd_loadgen.workload.spec import check

DURATION_S = 600.0
TARGETS = (0.90, 0.99)
MOST_SEEDS = 1000
OWN = ("policy", "cluster", "workload", "log")
"""Sections of the config that contenders do not share, or that say nothing here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`specs` by trace name, `settings` by profile name."""

    wanted: Wanted
    specs: dict[str, WorkloadSpec]
    settings: dict[str, Setting]


def parser() -> ArgumentParser:
    """All flags."""
    top = ArgumentParser(prog="dopd compare", description="Compare policies on the same arrivals in virtual time.")
    top.add_argument(
        "--from", dest="from_file", type=Path, metavar="FILE", help="show a JSON written before; run nothing"
    )
    group = top.add_argument_group("what is compared (docs/comparison.md)")
    group.add_argument("--trace", action="append", default=[], metavar="NAME|FILE", help="preset or trace; repeatable")
    group.add_argument("--profile", action="append", default=[], metavar="NAME", help="engine; repeatable")
    group.add_argument(
        "--policies", type=policies, default=[], metavar="A,B", help="simple, aggregated, static-3p5d, …"
    )
    group.add_argument("--workers", type=count, default=8, metavar="N", help="engines, 2 or more (default 8)")
    group.add_argument("--reference", metavar="NAME", help="whom differences are taken to (default: the first)")
    group.add_argument(
        "--rates", type=rates, default=[], metavar="auto|X,Y", help="times the source's rate (default auto)"
    )
    group.add_argument("--tune-rate", type=rate, metavar="X", help="rate to tune at (default: near the knee)")
    group.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    group.add_argument("--seeds", type=count, default=1, metavar="N", help="so many schedules, each for all policies")
    group.add_argument("--goodput-search", action="store_true", help="find the largest rates that attain 90 and 99 %%")
    group.add_argument("--tolerance", type=tolerance, default=0.03, metavar="X", help="of that search (default 0.03)")
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="KEY:MS",
        help=f"targets: ttft:2000 tpot:80, or {', '.join(PRESETS)}",
    )
    group.add_argument(
        "--timeout", type=seconds, default=600.0, metavar="S", help="of a request, from its intended send"
    )
    group.add_argument("--warmup", type=seconds, default=0.0, metavar="S", help="leave out requests due in the first S")
    group.add_argument("--cooldown", type=seconds, default=0.0, metavar="S", help="and those due in the last S")
    add_config_argument(top)
    add_shape(top.add_argument_group("loads (docs/workloads.md)"))
    out = top.add_argument_group("how, and where to")
    out.add_argument("--jobs", type=count, default=1, metavar="N", help="processes (no figure depends on it)")
    out.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    out.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots")
    out.add_argument("--plots", type=Path, metavar="DIR", help="write the plots as PNG and SVG")
    return top


def asked(args: Namespace) -> Asked:
    """What the flags come to. Raises LoadError or ConfigError with the flag."""
    for flag, given in (("--trace", args.trace), ("--profile", args.profile), ("--policies", args.policies)):
        if not given:
            raise LoadError(flag, "is missing; give one or more")
        if len(set(given)) < len(given):
            raise LoadError(flag, f"{max(given, key=given.count)} is given twice")
    if args.workers < 2:
        raise LoadError("--workers", f"{args.workers}: prefill and decode apart need 2 or more")
    specs = {name_of(source): spec_of(source, args) for source in args.trace}
    if len(specs) < len(args.trace):
        raise LoadError("--trace", "two files have one name; tables could not tell them apart")
    for spec in specs.values():
        check(spec)
    wanted = _wanted(args, specs)
    settings = {profile: setting_of(profile, args) for profile in args.profile}
    for setting in settings.values():
        for spec in specs.values():
            check(spec_for(spec, setting, *_first(wanted)))
        for policy in args.policies:
            _check_policy(policy, setting)
    wanted = msgspec.structs.replace(wanted, settings=_settings(next(iter(settings.values())).config))
    return Asked(wanted, specs, settings)


def _wanted(args: Namespace, specs: dict[str, WorkloadSpec]) -> Wanted:
    reference = args.reference or args.policies[0]
    if reference not in args.policies:
        raise LoadError("--reference", f"{reference} is not among --policies")
    duration_s = DURATION_S if args.duration_s is None else args.duration_s
    if not args.warmup + args.cooldown < duration_s:
        raise LoadError("--warmup", f"with --cooldown leaves nothing of {duration_s:g} s")
    if args.seeds > MOST_SEEDS:
        raise LoadError("--seeds", f"{args.seeds} is above {MOST_SEEDS}")
    slo = _config(args, args.profile[0]).slo
    return Wanted(
        traces={name: _described(spec) for name, spec in specs.items()},
        profiles={profile: named(profile).gpus for profile in args.profile},
        policies=args.policies,
        reference=reference,
        workers=args.workers,
        rates=args.rates,
        seeds=list(range(args.seed, args.seed + args.seeds)),
        tuning_seed=args.seed + MOST_SEEDS,
        tune_rate=args.tune_rate,
        duration_s=duration_s,
        warmup_s=args.warmup,
        cooldown_s=args.cooldown,
        timeout_s=args.timeout,
        slo_ttft_s=slo.ttft_s,
        slo_tpot_s=slo.tpot_s,
        targets=list(TARGETS) if args.goodput_search else [],
        tolerance=args.tolerance,
        versions=versions(),
    )


def _first(wanted: Wanted) -> tuple[float, int]:
    return (wanted.rates or [1.0])[0], wanted.seeds[0]


def spec_of(source: str, args: Namespace) -> WorkloadSpec:
    """The load of one trace; flags that are for one kind of source go to that kind alone."""
    given = {one.name: getattr(args, one.name) for one in fields(WorkloadSpec) if hasattr(args, one.name)}
    given |= {"duration_s": DURATION_S if args.duration_s is None else args.duration_s, "source": source}
    del given["seed"]
    return WorkloadSpec(**given)


def _described(spec: WorkloadSpec) -> dict[str, object]:
    default = WorkloadSpec(source="")
    wishes = {one.name: getattr(spec, one.name) for one in fields(spec)}
    return {name: value for name, value in wishes.items() if value != getattr(default, name)}


def name_of(source: str) -> str:
    """A preset's name, or a file's without its folder and ending."""
    name = Path(source).name
    return re.sub(r"(\.(csv|jsonl|json|gz))+$", "", name) if "/" in source or "." in name else source


MOST_PREFILLS = 128
"""Of one worker at a time. Policies bound what lies ahead of an engine by themselves, and a batch of short prompts must
not be cut by the default."""


def setting_of(profile: str, args: Namespace) -> Setting:
    """The ground that the flags and the config come to. Raises LoadError or ConfigError."""
    return Setting(_config(args, profile), args.workers, args.timeout, args.warmup, args.cooldown)


def _config(args: Namespace, profile: str) -> Config:
    """The file and the environment, then the flags. Raises ConfigError."""
    config = configs.load(args.config)
    named(profile)
    slo = config.slo
    if args.goodput:
        goal = parse_goodput(args.goodput)
        if goal.e2e_s is not None:
            raise LoadError("--goodput", "e2el is no target here; give ttft and tpot")
        slo = msgspec.structs.replace(slo, ttft_s=goal.ttft_s, tpot_s=goal.tpot_s)
    worker = msgspec.structs.replace(config.worker, max_prefills=max(MOST_PREFILLS, config.worker.max_prefills))
    engine = msgspec.structs.replace(config.engine, profile=profile)
    return msgspec.structs.replace(config, slo=slo, worker=worker, engine=engine)


def _settings(config: Config) -> dict[str, object]:
    """What of the config is not its default, for the record."""
    mine, default = msgspec.to_builtins(config), msgspec.to_builtins(Config())
    changed = {
        section: {key: value for key, value in values.items() if value != default[section][key] and key != "profile"}
        for section, values in mine.items()
        if section not in OWN
    }
    return {section: values for section, values in changed.items() if values}


def _check_policy(name: str, setting: Setting) -> None:
    """Whether there is such a policy and whether it fits, without tuning it. Raises ConfigError."""
    base, params = contenders.parse(name)
    if base in POLICIES:
        policy_named(base, params)
    else:
        contenders.prepare(name, setting, [Planned(0, 0.0, 1, 1)])


# --- argparse types ---------------------------------------------------------------------------------------------------


def policies(text: str) -> list[str]:
    """Names between commas; commas in brackets are a policy's own. Raises ArgumentTypeError."""
    names = [name.strip() for name in re.split(r",(?![^\[]*\])", text)]
    if not all(names):
        raise ArgumentTypeError(f"{text!r}: give names between commas")
    return names


def rates(text: str) -> list[float]:
    """Numbers between commas in ascending order, or none for `auto`. Raises ArgumentTypeError."""
    if text == "auto":
        return []
    return sorted({rate(word) for word in text.split(",")})


def rate(text: str) -> float:
    """A factor on the source's rate. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentTypeError(f"{text!r}: give numbers above 0 between commas, such as 0.5,1,2, or auto")
    return rounded(value)


def tolerance(text: str) -> float:
    """A share such as 0.03. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 0.5:
        raise ArgumentTypeError(f"{text!r}: give a share from 0.001 to 0.5")
    return value
