"""What a policy sees and what it may decide: views in, decisions out, nothing else.

A policy is up to three pure functions with explicit state: `Scheduler` (gateway), `StepBudget` (inside the engine)
and `Planner` (ratio-planner). Adding one is one file and one line in `dopd.policy.POLICIES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

from dopd.cluster import ClusterView
from dopd.perf.profile import PROFILES, Profile
from dopd.slo import Slo

Role = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a policy may know before it starts: the engine as numbers, and the targets of requests that bring none.

    A scheduler or planner is given it when its factory takes `ground`. A budget crosses to the engine as plain numbers:
    of its parameters those that are named as fields of `Profile`, and `ttft_s` and `tpot_s`, come from here.
    """

    profile: Profile = PROFILES["h200-llama-3.1-8b-fp8-tp1"]
    slo: Slo = field(default_factory=Slo)


# --- Scheduler -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestView:
    """A waiting request. `isl_tokens` counts all input of the next segment, tokens already sent included.

    `kv_tokens` of it have been computed and stored by an earlier segment: such a request only needs a place to decode.
    `kv_domain` is where they are. `osl_tokens` is the predicted number of output tokens still to come, with its spread
    as standard deviation.
    """

    request_id: str
    isl_tokens: int
    uncached_tokens: int
    osl_tokens: float
    osl_std_tokens: float
    max_new_tokens: int
    slo: Slo
    priority: int
    arrived_s: float
    attempt: int = 0
    kv_tokens: int = 0
    kv_domain: str = ""
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """Compute KV up to `stop` tokens of prompt + output on this worker. None: the end, or a worker chosen later."""

    worker_id: str | None
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one request goes: one segment, or two."""

    request_id: str
    segments: tuple[SegmentPlan, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Requests bound together. `together`: their first segments start in one step; `exclusive`: no prefill beside."""

    placements: tuple[Placement, ...]
    together: bool = False
    exclusive: bool = False


class Scheduler(Protocol):
    """Lives in the gateway, owns the waiting queue, binds late."""

    def initial(self) -> Any:
        """The state before the first call."""

    def step(
        self, state: Any, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[Any, Sequence[Dispatch], float | None]:
        """Bind what should go now; the float asks to be called again at that time."""


# --- StepBudget ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WaitingView:
    """A request in the engine that has not started. `tokens` is the input still to compute.

    `ready` is false while its KV is being looked up or fetched. The batch fields are those of `BatchTag`.
    """

    job_id: str
    tokens: int
    waited_s: float
    ready: bool = True
    batch_id: str = ""
    batch_size: int = 1
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class StepView:
    """The engine just before a step: what runs, and what waits in arrival order.

    `context_tokens` is the context of the decodes, `prefill_context_tokens` what of the prefills is computed already.
    """

    decodes: int
    context_tokens: int
    prefills: int
    exclusive_running: bool
    waiting: Sequence[WaitingView]
    max_tokens: int
    max_running: int
    prefill_context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepLimit:
    """What the step may do. `gate` "closed" admits no new request, "batch" one batch; None: the engine's own limit."""

    max_tokens: int | None = None
    max_running: int | None = None
    gate: Literal["open", "batch", "closed"] = "open"


class StepBudget(Protocol):
    """Asked inside the engine before every step."""

    def initial(self) -> Any:
        """The state before the first step."""

    def limit(self, state: Any, step: StepView) -> tuple[Any, StepLimit]:
        """The limits of the next step."""


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """A `StepBudget` by name (`package.module:Class`) and coefficients, so that it can cross to a child process.

    With `prefills_only` it is not asked for steps of decodes alone, with nothing waiting; most steps are such.
    """

    target: str
    params: Mapping[str, float] = field(default_factory=dict)
    prefills_only: bool = False


# --- Planner ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeriesView:
    """One series of a forecast: its mean over the horizon, and (level, value) of what it may be, levels rising.

    `model` made it; `error` is that model's recent relative one, `reason` what to beware of ("" for nothing).
    """

    point: float
    quantiles: tuple[tuple[float, float], ...] = ()
    model: str = ""
    error: float | None = None
    reason: str = ""

    def at(self, level: float) -> float:
        """The value at this level, between known ones by interpolation, beyond them the last; without any the point."""
        known = self.quantiles
        if not known or level <= known[0][0]:
            return known[0][1] if known else self.point
        for (low, below), (high, above) in pairwise(known):
            if level <= high:
                return below + (above - below) * (level - low) / (high - low)
        return known[-1][1]


@dataclass(frozen=True, slots=True)
class ForecastView:
    """What the forecaster expects in [start_s, start_s + horizon_s).

    Of `series`, `prefill_work` and `decode_work` are seconds of engine time per second.
    """

    requests_per_s: float
    isl_tokens_mean: float
    isl_tokens_var: float
    osl_tokens_mean: float
    start_s: float = 0.0
    horizon_s: float = 0.0
    model: str = ""
    series: Mapping[str, SeriesView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A split that was considered: what share of requests it should serve within the targets, and how much more load
    it would take before its `binding` constraint is at its limit (a share of that limit; below 0: already above)."""

    prefill: int
    decode: int
    attainment: float
    headroom: float
    binding: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Wanted role per worker (absent: leave as it is) and free-form knobs for the schedulers, with the reason.

    `reason` is a code; where nothing could be decided, `needs` says what for. `inputs` are the numbers that it came
    from, `alternatives` the splits considered, the best first, `binding` what limits the one that was chosen.
    """

    roles: Mapping[str, Role]
    knobs: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    needs: str = ""
    binding: str = ""
    inputs: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()


class Planner(Protocol):
    """Lives in the ratio-planner."""

    def initial(self) -> Any:
        """The state before the first round."""

    def plan(
        self, state: Any, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, now_s: float
    ) -> tuple[Any, Plan]:
        """The roles wanted now."""


# --- Policy ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """One serving system: how it schedules, what it does inside the engine, and whether it changes roles.

    `split` is (prefill, decode) workers where the policy is made for so many of each; None: the cluster's sizes hold.
    `starts` makes, by new role, the seconds that a worker is away to change to it: it finishes what it has, stops and
    starts anew; a role that is not named changes warm. `forecast_models` is what the forecaster is to choose among,
    unless the config says otherwise.
    """

    name: str
    scheduler: Callable[..., Scheduler]
    budget: BudgetSpec | None = None
    planner: Callable[..., Planner] | None = None
    first_roles: Literal["split", "mixed"] = "split"
    split: tuple[int, int] | None = None
    starts: Callable[..., Mapping[Role, float]] | None = None
    forecast_models: tuple[str, ...] = ()
