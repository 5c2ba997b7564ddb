"""The same load against the same services in virtual time: `simulate` gives a `Run` like any other.

Consumes a schedule, a `Config` and a seed; produces a `Run` whose times are exact and a function of the seed. Token
times are the workers' own: the way from worker to client takes no virtual time.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dopd.bus import Delivery
from dopd.config import Config
from dopd.errors import RequestError
from dopd.obs.telemetry import Tracing
from dopd.perf.model import beyond
from dopd.policy.base import Policy
from dopd.runtime.clock import Runtime
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.service import Gateway
from dopd_gateway.stream import Inbound
from dopd_loadgen.cluster import LocalCluster
from dopd_loadgen.drive import CANCEL_S, DriveSettings, Progress, drive, zero_of
from dopd_loadgen.model import Failure, Phase, Planned, Record, RoleCount, Run
from dopd_loadgen.queues import Queues
from dopd_proto.request import Sampling
from dopd_proto.subjects import GATEWAY_STATE, WORKER_STATE
from dopd_proto.telemetry import WorkerState

BUS_LATENCY_S = 2e-4
Prompt = Callable[[Planned], list[int]]


class VirtualTarget:
    """A `Target` on a gateway's token side, in the gateway's own process and time."""

    def __init__(self, gateway: Gateway, runtime: Runtime, prompt: Prompt, slo: Slo, timeout_s: float) -> None:
        self.model = gateway.model
        self._gateway, self._runtime, self._prompt = gateway, runtime, prompt
        self._slo, self._timeout_s = slo, timeout_s

    async def open(self) -> None:
        """The cluster is up already."""

    async def close(self) -> None:
        """The cluster is stopped by whoever started it."""

    async def send(self, planned: Planned, record: Record) -> None:
        zero_s = zero_of(record, self._runtime.now())
        deadline_s = zero_s + planned.at_s + self._timeout_s
        sampling = Sampling(max_tokens=planned.osl_tokens, temperature=0.0, ignore_eos=True)
        try:
            stream = self._gateway.open(Inbound(self._prompt(planned), sampling, self._slo, deadline_s))
            record.request_id, timeline = stream.request_id, stream.timeline
            try:
                async for piece in stream:
                    record.times_s += [time_s - zero_s for time_s in piece.times_s]
                    record.finish_reason = piece.end or ""
            finally:
                stream.cancel()
            record.failure = ""
            record.timeline = tuple(Phase(name, start, end, place.where) for name, start, end, place in timeline())
        except RequestError as error:
            record.failure, record.detail, record.status = _kind(error), error.message, error.status
        finally:
            record.counts = [1] * len(record.times_s)
            record.prompt_tokens = planned.isl_tokens
            record.ended_s = self._runtime.now() - zero_s


def _kind(error: RequestError) -> Failure:
    if error.status in (429, 503):
        return "rejected"
    if error.status == 504:
        return "timeout"
    return "client_error" if error.status < 500 else "server_error"


class Watch(Protocol):
    """Sees requests while they run. What it raises ends the run with that error."""

    def sent(self, record: Record) -> None:
        """It leaves now; token times come in as the workers report them."""

    def settled(self, record: Record) -> None:
        """It has come to its end. One that is neither failed nor completed has run out of time."""


class Watched(VirtualTarget):
    """A virtual target with somebody who looks on."""

    def __init__(self, watch: Watch, *rest: Any) -> None:
        super().__init__(*rest)
        self._watch = watch

    async def send(self, planned: Planned, record: Record) -> None:
        self._watch.sent(record)
        try:
            await super().send(planned, record)
        finally:
            self._watch.settled(record)


@dataclass(frozen=True, slots=True)
class Stage:
    """The running cluster, for what is to happen beside the load. `zero_s` is the run's zero on its clock."""

    cluster: LocalCluster
    zero_s: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """What `simulate` is to run.

    `policy` goes before the config's. `beside` runs beside the load from its start on, and ends with it at the latest.
    `tracing` is the cluster's. Workers start `spread_s` apart: live their heartbeats do not fall together either. With
    `max_concurrency` the loop is closed, as in `DriveSettings`.
    """

    config: Config
    seed: int
    prompt: Prompt
    timeout_s: float
    span_s: float
    label: str = ""
    policy: Policy | None = None
    watch: Watch | None = None
    beside: Callable[[Stage], Coroutine[Any, Any, None]] | None = None
    max_concurrency: int | None = None
    spread_s: float = 0.0
    tracing: Callable[[str, str], Tracing | None] = lambda service, instance: None


def simulate(
    schedule: Sequence[Planned], what: Simulation, on_progress: Callable[[Progress], None] | None = None
) -> Run:
    """Run the schedule to its end. Raises ConfigError for a config that cannot be simulated."""
    return run_virtual(_simulated(schedule, what, on_progress))


async def _simulated(
    schedule: Sequence[Planned], what: Simulation, on_progress: Callable[[Progress], None] | None
) -> Run:
    config = what.config
    runtime = VirtualRuntime(what.seed)
    cluster = LocalCluster(
        runtime, config, what.policy, together=True, latency_s=BUS_LATENCY_S, spread_s=what.spread_s,
        tracing=what.tracing,
    )  # fmt: skip
    await cluster.start()
    roles = Roles(runtime, {worker_id: worker.role.role for worker_id, worker in cluster.workers.items()})
    queues = Queues(runtime, what.span_s)
    observer = cluster.broker.connect("observer")
    await observer.subscribe(WORKER_STATE.at(), roles.saw)
    await observer.subscribe(WORKER_STATE.at(), queues.saw_worker)
    await observer.subscribe(GATEWAY_STATE.at(), queues.saw_gateway)
    slo = Slo(config.slo.ttft_s, config.slo.tpot_s)
    parts = (cluster.gateway, runtime, what.prompt, slo, what.timeout_s)
    target = VirtualTarget(*parts) if what.watch is None else Watched(what.watch, *parts)
    settings = DriveSettings(timeout_s=what.timeout_s, max_concurrency=what.max_concurrency)
    driving = drive(schedule, target, settings, on_progress)
    records = await (driving if what.beside is None else _beside(what.beside(Stage(cluster, roles.zero_s)), driving))
    ended_s = runtime.now() - roles.zero_s
    gpus = cluster.gpus
    await cluster.stop()
    return Run(
        label=what.label or config.policy.name,
        api="virtual",
        target=f"{_ratio(roles.counts[0])} {' + '.join(dict.fromkeys(each.name for each in cluster.profiles))}",
        model=target.model,
        seed=what.seed,
        started_unix_s=roles.zero_s,
        span_s=what.span_s,
        ended_s=ended_s,
        slo_ttft_s=slo.ttft_s,
        slo_tpot_s=slo.tpot_s,
        records=records,
        max_concurrency=what.max_concurrency,
        settings={"beyond": flags} if (flags := _beyond(cluster, schedule)) else {},
        gpus=gpus,
        gpu_seconds=gpus * what.span_s,
        roles=roles.counts,
        queues=queues.samples,
    )


def _beyond(cluster: LocalCluster, schedule: Sequence[Planned]) -> list[str]:
    """Where a single request of the schedule already takes an engine far beyond what was measured of it."""
    prefill, decode = cluster.profiles
    prompt = max((planned.isl_tokens for planned in schedule), default=0)
    context = max((planned.isl_tokens + planned.osl_tokens for planned in schedule), default=0)
    flags = beyond(prefill, prompt_tokens=min(prompt, prefill.max_step_tokens))
    return flags + beyond(decode, context_tokens=context)


async def _beside(work: Coroutine[Any, Any, None], driving: Coroutine[Any, Any, list[Record]]) -> list[Record]:
    """The load's records. What goes wrong beside it ends it at once."""
    loop = asyncio.get_running_loop()
    helper, load = loop.create_task(work), loop.create_task(driving)
    try:
        await asyncio.wait({helper, load}, return_when=asyncio.FIRST_COMPLETED)
        if helper.done():
            helper.result()
        return await load
    finally:
        helper.cancel()
        load.cancel()
        await asyncio.wait({helper, load}, timeout=CANCEL_S)


def _ratio(roles: RoleCount) -> str:
    """Such as 3P5D."""
    counts = ((roles.n_prefill, "P"), (roles.n_decode, "D"), (roles.n_mixed, "M"))
    return "".join(f"{count}{letter}" for count, letter in counts if count)


class Roles:
    """Workers per role over time, from those they begin with and what the workers say. Zero is when it is made."""

    def __init__(self, runtime: Runtime, first: dict[str, str]) -> None:
        self._runtime = runtime
        self._of = first
        self.zero_s = runtime.now()
        self.counts: list[RoleCount] = []
        self._count()

    def saw(self, delivery: Delivery[WorkerState]) -> None:
        """Take a worker's state."""
        state = delivery.message
        if self._of.get(state.worker_id) != state.role:
            self._of[state.worker_id] = state.role
            self._count()

    def _count(self) -> None:
        now = list(self._of.values())
        at_s = self._runtime.now() - self.zero_s
        self.counts.append(RoleCount(at_s, now.count("prefill"), now.count("decode"), now.count("mixed")))
