"""A virtual cluster under a load of theory's kind: one-sized prompts, Poisson arrivals, a closed loop.

Consumes a schedule and a profile; produces the records, and how many requests were where at every sample.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dopd.config import ClusterConfig, Config, EngineConfig, GatewayConfig, WorkerConfig
from dopd.obs.log import logs_from
from dopd.perf.model import prefill_s, transfer_s
from dopd.perf.profile import Profile, named
from dopd.policy.base import BudgetSpec, Policy, StepLimit, StepView
from dopd.policy.simple import SIMPLE
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_loadgen.cluster import LocalCluster
from dopd_loadgen.drive import DriveSettings, drive
from dopd_loadgen.model import Planned, Record
from dopd_loadgen.sim import VirtualTarget

_REAL = named("h200-llama-3.1-8b-fp8-tp1")
# Theory knows of queues and steps only: what a request takes beside its steps is paid in them.
H200 = replace(_REAL, arrival_s=0.0, prefill_fixed_s=_REAL.prefill_fixed_s + _REAL.arrival_s)
CHUNK = H200.chunk_tokens
LATENCY_S = 2e-4
TIMEOUT_S = 100_000.0


class OneByOne:
    """A step takes one prompt in: the queue of the textbooks, where nobody is served beside another."""

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, StepLimit(gate="closed" if step.prefills else "batch")


ONE_BY_ONE = replace(SIMPLE, name="one-by-one", budget=BudgetSpec("tests.shapes_rig:OneByOne", prefills_only=True))


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests in the gateway's hands at one moment, and in each engine."""

    at_s: float
    gateway: int
    engines: dict[str, int]


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a load."""

    records: list[Record]
    samples: list[Sample]
    kv_misses: int

    @property
    def ttfts_s(self) -> list[float]:
        return [record.times_s[0] - record.intended_s for record in self.records]


def service_s(profile: Profile, isl_tokens: int) -> float:
    """What one prompt alone takes of a prefill worker: computing it, and putting its whole chunks into the store."""
    return prefill_s(profile, isl_tokens) + transfer_s(profile, isl_tokens // CHUNK * CHUNK)


def scaled(profile: Profile, factor: float) -> Profile:
    """The same engine with every time multiplied."""
    times = [name for name in Profile.__dataclass_fields__ if name.endswith("_s") and "_per_" not in name]
    changed = {name: factor * getattr(profile, name) for name in times}
    return replace(profile, **changed, transfer_bytes_per_s=profile.transfer_bytes_per_s / factor)


def poisson(count: int, rate: float, isl: int, osl: int = 1, seed: int = 0) -> list[Planned]:
    """Equal requests at the times of a Poisson process."""
    rng = random.Random(f"{seed}/arrivals")
    plans, at_s = [], 0.0
    for index in range(count):
        at_s += rng.expovariate(rate)
        plans.append(Planned(index, at_s, isl, osl))
    return plans


def prompt(planned: Planned) -> list[int]:
    """No two begin alike."""
    return list(range(planned.index, planned.index + planned.isl_tokens))


def serve(
    schedule: Sequence[Planned],
    profile: Profile = H200,
    policy: Policy = SIMPLE,
    *,
    prefill: int = 1,
    decode: int = 1,
    sample_s: float = 0.0,
    concurrency: int | None = None,
    worker: WorkerConfig | None = None,
) -> Served:
    """Run the schedule to its end in virtual time. With `concurrency` the loop is closed."""
    config = Config(
        cluster=ClusterConfig(prefill=prefill, decode=decode),
        gateway=GatewayConfig(max_waiting=100_000),
        worker=worker or WorkerConfig(),
        engine=EngineConfig(save_decode_cache=False),
    )
    with logs_from("warning"):
        return run_virtual(_serve(schedule, profile, policy, config, sample_s, concurrency))


async def _serve(
    schedule: Sequence[Planned],
    profile: Profile,
    policy: Policy,
    config: Config,
    sample_s: float,
    concurrency: int | None,
) -> Served:
    runtime = VirtualRuntime(0)
    cluster = LocalCluster(runtime, config, policy, profile, together=True, latency_s=LATENCY_S)
    await cluster.start()
    await asyncio.sleep(1.0)
    zero_s, samples = runtime.now(), list[Sample]()
    watching = [asyncio.ensure_future(_watch(cluster, sample_s, zero_s, samples))] if sample_s else []
    target = VirtualTarget(cluster.gateway, runtime, prompt, Slo(), TIMEOUT_S)
    records = await drive(schedule, target, DriveSettings(timeout_s=TIMEOUT_S, max_concurrency=concurrency))
    for task in watching:
        task.cancel()
    misses = sum(worker._missed for worker in cluster.workers.values())
    await cluster.stop()
    assert [record.failure for record in records] == [""] * len(schedule)
    return Served(records, samples, misses)


async def _watch(cluster: LocalCluster, every_s: float, zero_s: float, samples: list[Sample]) -> None:
    while True:
        loads = {worker_id: engine.load() for worker_id, engine in cluster.engines.items()}
        inside = {worker_id: load.running + load.waiting for worker_id, load in loads.items()}
        samples.append(Sample(cluster.runtime.now() - zero_s, len(cluster.gateway._requests), inside))
        await asyncio.sleep(every_s)
