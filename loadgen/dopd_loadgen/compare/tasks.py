"""What a process of the crew does: tune a policy, run a case, bound a load. Consumes a task; produces its figures.

A task holds a load's specification, not its requests: the child plans them, which gives the same in every process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from dopd.obs.log import logs_from
from dopd.perf.profile import named
from dopd_loadgen.compare import bound, contenders, ground, rows
from dopd_loadgen.compare.model import Contender, Row, Setting
from dopd_loadgen.compare.result import BoundRow, Detail, LoadRow
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import Schedule, WorkloadSpec, plan
from dopd_loadgen.workload.read import format_of


@dataclass(frozen=True, slots=True, order=True)
class Ground:
    """A trace on a profile, by their names."""

    trace: str
    profile: str


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One run: a policy on one schedule."""

    ground: Ground
    policy: str
    rate_scale: float
    seed: int


@dataclass(frozen=True, slots=True)
class Tune:
    """Make a policy ready on a tuning load. Gives a `Contender`."""

    policy: str
    setting: Setting
    spec: WorkloadSpec


@dataclass(frozen=True, slots=True)
class Measure:
    """Run a contender. Gives a `Row` and, where wanted, a `Detail`."""

    case: Case
    contender: Contender
    setting: Setting
    spec: WorkloadSpec
    detailed: bool = False


@dataclass(frozen=True, slots=True)
class Scout:
    """Run a contender that no row is made of. Gives its attainment, or `GIVEN_UP` where it is no more than that."""

    case: Case
    contender: Contender
    setting: Setting
    spec: WorkloadSpec


@dataclass(frozen=True, slots=True)
class Limit:
    """Describe a load and bound what can be had from it. Gives a `LoadRow` and a `BoundRow`."""

    ground: Ground
    setting: Setting
    spec: WorkloadSpec


Task = Tune | Measure | Scout | Limit
GIVEN_UP = 0.25


def perform(task: Task) -> Contender | tuple[Row, Detail | None] | float | tuple[LoadRow, BoundRow]:
    """Do it. Raises LoadError or ConfigError."""
    with logs_from("error"):  # an overloaded cluster has much to say
        schedule = _planned(task.spec)
        if isinstance(task, Tune):
            return contenders.prepare(task.policy, task.setting, schedule)
        if isinstance(task, Measure):
            return _measured(task, schedule)
        if isinstance(task, Scout):
            return _scouted(task, schedule)
        return _load_row(task, schedule), _bound_row(task, schedule)


def spec_for(spec: WorkloadSpec, setting: Setting, rate_scale: float, seed: int) -> WorkloadSpec:
    """The load of one case: clipped to the profile's context, and from a file beginning where the seed says.

    Raises LoadError for a file whose format cannot be told.
    """
    profile = named(setting.config.engine.profile)
    longest = min(spec.max_model_len or profile.max_model_len, profile.max_model_len, profile.kv_total_tokens)
    made = replace(spec, rate_scale=rate_scale, seed=seed, max_model_len=longest)
    if spec.path is None or (spec.format or format_of(spec.path)) in ("servegen", "sharegpt"):
        return made
    return replace(made, loop=True, turn=True)


@lru_cache(maxsize=2)
def _planned(spec: WorkloadSpec) -> Schedule:
    return plan(spec)


def _measured(task: Measure, schedule: Schedule) -> tuple[Row, Detail | None]:
    case = task.case
    run = contenders.run(task.contender, task.setting, schedule, case.seed, schedule.span_s)
    row = rows.row(run, task.contender, task.setting, case.ground.trace, case.rate_scale, case.seed)
    return row, rows.detail(run, row, task.setting) if task.detailed else None


def _due(setting: Setting, schedule: Schedule) -> list[Planned]:
    """The requests of the measured window."""
    start_s, end_s = ground.window_of(setting, schedule.span_s)
    return [one for one in schedule if start_s <= one.at_s <= end_s]


def _scouted(task: Scout, schedule: Schedule) -> float:
    """An overload is broken off once its misses are enough: what waits would be worked off for nothing."""
    due = len(_due(task.setting, schedule))
    if not due:
        return 0.0
    what = ground.simulation(task.contender, task.setting, task.case.seed, schedule.span_s)
    tried = ground.attempt(what, schedule, task.setting, limit=due * (1 - GIVEN_UP))
    return GIVEN_UP if tried is None else 1 - tried[0] / due


def _load_row(task: Limit, schedule: Schedule) -> LoadRow:
    due = _due(task.setting, schedule)
    start_s, end_s = ground.window_of(task.setting, schedule.span_s)

    def rate(tokens: Sequence[int]) -> float:
        return sum(tokens) / (end_s - start_s) if end_s > start_s else 0.0

    return LoadRow(
        trace=task.ground.trace,
        profile=task.ground.profile,
        rate_scale=task.spec.rate_scale,
        seed=task.spec.seed,
        requests=len(due),
        span_s=schedule.span_s,
        offered_rps=rate([1] * len(due)),
        input_tps=rate([one.isl_tokens for one in due]),
        output_tps=rate([one.osl_tokens for one in due]),
        clipped=schedule.notes.clipped,
    )


def _bound_row(task: Limit, schedule: Schedule) -> BoundRow:
    found = bound.bound(task.setting, schedule, schedule.span_s)
    return BoundRow(
        trace=task.ground.trace,
        profile=task.ground.profile,
        rate_scale=task.spec.rate_scale,
        seed=task.spec.seed,
        goodput_rps=float(found.goodput_rps),
        goodput_tps=float(found.goodput_tps),
        attainment=float(found.attainment),
        why=found.why,
    )
