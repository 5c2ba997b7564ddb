"""`dopd whatif`: what a policy's planner would decide under a load, replayed in virtual time.

Consumes the command line; produces the decisions with their reasons, the roles over time and the run's figures as text,
and as JSON. Exit codes: 0; 1 for an id that no decision has; 2 for what cannot be run or read.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from dopd import config as configs
from dopd.errors import ConfigError, LoadError
from dopd.obs.explain import table, words
from dopd.obs.log import logs_from
from dopd.runtime.main import add_config_argument
from dopd.runtime.virtual import run_virtual
from dopd_loadgen.arguments import add_shape, count, seconds
from dopd_loadgen.compare import asked, contenders, ground, rows
from dopd_loadgen.compare.model import Row
from dopd_loadgen.compare.tasks import spec_for
from dopd_loadgen.goodput import PRESETS
from dopd_loadgen.model import RoleCount
from dopd_loadgen.report.files import write_whole
from dopd_loadgen.sim import Stage, simulate
from dopd_loadgen.workload import plan
from dopd_loadgen.workload.spec import check
from dopd_planner.history import recall
from dopd_proto.control import DecisionRecord

ALL = 1_000_000


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `decisions` and `roles` are in seconds from the start of the load."""

    trace: str
    policy: str
    row: Row
    roles: list[RoleCount]
    decisions: list[DecisionRecord]


@dataclass(slots=True)
class _Kept:
    """The stage of the run, which outlives it."""

    stage: Stage | None = None

    async def keep(self, stage: Stage) -> None:
        self.stage = stage


def main(argv: Sequence[str]) -> int:
    """Run and show."""
    args = parser().parse_args(argv)
    try:
        with logs_from("error"):
            found = replayed(args)
        if args.json is not None:
            write_whole(args.json, msgspec.json.format(msgspec.json.encode(found), indent=2))
    except (LoadError, ConfigError) as error:
        print(f"dopd whatif: {error}", file=sys.stderr)
        return 2
    if args.explain is None:
        print(shown(found, args.changes))
        return 0
    told = [record for record in found.decisions if record.decision_id == args.explain]
    if not told:
        print(f"dopd whatif: there is no decision {args.explain!r}", file=sys.stderr)
        return 1
    print(words(told[0], since))
    return 0


def parser() -> ArgumentParser:
    """All flags."""
    top = ArgumentParser(prog="dopd whatif", description="Replay a load; list what the planner would decide, and why.")
    group = top.add_argument_group("what is replayed (docs/planner.md)")
    group.add_argument("--trace", required=True, metavar="NAME|FILE", help="preset or trace")
    group.add_argument("--policy", default="dopd", metavar="NAME", help="such as dopd[cooldown_s=30] (default dopd)")
    group.add_argument("--workers", type=count, default=8, metavar="N", help="engines, 2 or more (default 8)")
    group.add_argument("--profile", metavar="NAME", help="engine (default: the config's)")
    group.add_argument("--rate", type=asked.rate, default=1.0, metavar="X", help="times the source's rate")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and lengths (default 0)")
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="KEY:MS",
        help=f"targets: ttft:2000 tpot:80, or {', '.join(PRESETS)}",
    )
    group.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="of a request")
    add_config_argument(top)
    add_shape(top.add_argument_group("load (docs/workloads.md)"))
    out = top.add_argument_group("what is shown")
    out.add_argument("--changes", action="store_true", help="only decisions that change a role")
    out.add_argument("--explain", metavar="ID", help="tell one decision in words instead")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    top.set_defaults(warmup=0.0, cooldown=0.0)
    return top


def replayed(args: Namespace) -> WhatIf:
    """The same arguments give the same to the last bit. Raises LoadError and ConfigError."""
    profile = args.profile or configs.load(args.config).engine.profile
    setting = asked.setting_of(profile, args)
    spec = spec_for(asked.spec_of(args.trace, args), setting, args.rate, args.seed)
    check(spec)
    schedule = plan(spec)
    contender = contenders.prepare(args.policy, setting, schedule)
    if contender.oracle:
        raise ConfigError("--policy", args.policy, "looks into the future and decides nothing; use another")
    kept = _Kept()
    what = ground.simulation(contender, setting, args.seed, schedule.span_s)
    run = simulate(schedule, replace(what, beside=kept.keep))
    assert kept.stage is not None, "the run had a stage"
    history = run_virtual(recall(kept.stage.cluster.ledger.open(), ALL))
    return WhatIf(
        trace=asked.name_of(args.trace),
        policy=args.policy,
        row=rows.row(run, contender, setting, asked.name_of(args.trace), args.rate, args.seed),
        roles=run.roles,
        decisions=[_from_start(record, kept.stage.zero_s) for record in history.last(ALL)],
    )


def _from_start(record: DecisionRecord, zero_s: float) -> DecisionRecord:
    forecast = record.forecast
    if forecast is not None:
        forecast = msgspec.structs.replace(forecast, start_s=forecast.start_s - zero_s)
    return msgspec.structs.replace(record, at_s=record.at_s - zero_s, forecast=forecast)


# --- as text --------------------------------------------------------------------------------------------------------


def since(at_s: float) -> str:
    """Seconds from the start of the load."""
    return f"{at_s:.1f} s"


def shown(found: WhatIf, changes: bool = False) -> str:
    """Decisions, roles, figures."""
    row, decisions = found.row, [one for one in found.decisions if one.changes or not changes]
    told = table(decisions, since)
    if not decisions:
        made = len(found.decisions)
        told = f"None of {made} decisions changes a role." if made else "This policy moves nobody."
    return "\n".join(
        [
            told, "", "Roles:", *(_roles(one) for one in found.roles), "",
            f"{found.policy} under {found.trace} at {row.rate_scale:g} times its rate, seed {row.seed}: "
            f"{row.requests} requests, {row.failed} failed, {row.flips} role changes",
            f"attainment {row.attainment:.1%}, goodput {row.goodput_rps:.2f} requests/s, "
            f"TTFT p90 {_ms(row.p90_ttft_s)}, TPOT p90 {_ms(row.p90_tpot_s)}",
        ]
    )  # fmt: skip


def _roles(one: RoleCount) -> str:
    parts = ((one.n_prefill, "P"), (one.n_decode, "D"), (one.n_mixed, "M"))
    split = "".join(f"{count}{letter}" for count, letter in parts if count)
    return f"  {since(one.at_s):>9}  {split:<6} {''.join(letter * count for count, letter in parts)}"


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{1e3 * value_s:.0f} ms"
