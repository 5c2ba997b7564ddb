"""Runs in virtual time of four workers under a load that turns from prompts to answers and back, planned by `ratio`.

Consumes what to do beside the load; produces the `Run` and the planner's records as the ledger has them.
"""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dopd.config import ClusterConfig, Config, EngineConfig, ForecasterConfig, GatewayConfig, PlannerConfig
from dopd.ledger.memory import MemoryStore
from dopd.obs.log import logs_from
from dopd.obs.telemetry import Tracing
from dopd.perf.profile import named
from dopd.policy.base import Ground, Policy
from dopd.policy.ratio import RatioPlanner
from dopd.policy.static_split import static_split
from dopd.runtime.virtual import run_virtual
from dopd_loadgen.compare.ground import Prompts
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.sim import Simulation, Stage, simulate
from dopd_planner.history import History, recall
from dopd_proto.control import DecisionRecord, DecisionsReply

PROFILE = "a100-qwen2.5-14b-bf16-tp1"
SPAN_S, PART_S = 60.0, 20.0
PARTS = ((6.0, 2500, 12), (14.0, 200, 400), (6.0, 2500, 12))
"""Requests per second, mean input and output tokens."""
PLANNED = replace(
    static_split(2, 2), name="planned", split=None, planner=partial(RatioPlanner, Ground(named(PROFILE)), local=0)
)


def shifting() -> list[Planned]:
    """The load, always the same."""
    rng, planned = random.Random("planned-runs"), []
    for part, (rate, isl, osl) in enumerate(PARTS):
        at_s = part * PART_S + rng.expovariate(rate)
        while at_s < (part + 1) * PART_S:
            lengths = (int(mean * rng.uniform(0.5, 1.5)) for mean in (isl, osl))
            planned.append(Planned(len(planned), at_s, *lengths))
            at_s += rng.expovariate(rate)
    return planned


@dataclass
class Looked:
    """What a run leaves behind."""

    run: Run | None = None
    store: MemoryStore | None = None
    history: History = field(default_factory=History)
    replies: list[DecisionsReply] = field(default_factory=list)
    worker_id: str = ""

    @property
    def records(self) -> tuple[DecisionRecord, ...]:
        return self.history.last(10_000)

    @property
    def moves(self) -> list[DecisionRecord]:
        return [record for record in self.records if record.changes]

    @property
    def prefill(self) -> list[int]:
        """Prefill workers, from change to change."""
        assert self.run is not None
        return [count.n_prefill for count in self.run.roles]


def planned_run(
    beside: Callable[[Stage, Looked], Coroutine[Any, Any, None]] | None = None,
    dry_run: bool = False,
    tracing: Callable[[str, str], Tracing | None] = lambda service, instance: None,
    policy: Policy = PLANNED,
) -> Looked:
    """The load on two prefill and two decode workers, with bins of 5 s."""
    config = Config(
        cluster=ClusterConfig(prefill=2, decode=2),
        engine=EngineConfig(profile=PROFILE),
        gateway=GatewayConfig(window_s=5.0),
        forecaster=ForecasterConfig(bin_s=5.0, horizons_s=(5.0,)),
        planner=PlannerConfig(dry_run=dry_run),
    )
    looked = Looked()

    async def watch(stage: Stage) -> None:
        looked.store = stage.cluster.ledger
        if beside is not None:
            await beside(stage, looked)

    what = Simulation(config, 1, Prompts(1), 120.0, SPAN_S, policy=policy, beside=watch, tracing=tracing)
    with logs_from("warning"):
        looked.run = simulate(shifting(), what)
    assert looked.store is not None
    looked.history = run_virtual(recall(looked.store.open()))
    return looked
