"""Whole virtual clusters under one policy: what goes in, what was decided, what came out, what the engines did."""

import asyncio
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dopd.cluster import ClusterView, WorkerView
from dopd.config import ClusterConfig, Config, EngineConfig
from dopd.engine.contract import StepRecord
from dopd.engine.sim.tokens import draw, prefix_state
from dopd.perf.profile import Profile, named
from dopd.policy.base import Dispatch, Placement, Policy, RequestView, Scheduler
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.stream import Inbound
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.request import Sampling
from dopd_proto.telemetry import WorkerState

H200 = named("h200-llama-3.1-8b-fp8-tp1")
# The same GPU with little memory and small steps, so that both are short all the time.
NARROW = replace(H200, kv_total_tokens=24_000, max_step_tokens=2048)
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Asked:
    """A request of the load: `prompt` and `osl_tokens` are sent `at_s` after the start."""

    at_s: float
    prompt: tuple[int, ...]
    osl_tokens: int
    slo: Slo

    @property
    def answer(self) -> list[int]:
        """The only right output."""
        return draw(prefix_state(array("I", self.prompt)), 0, self.osl_tokens)[0]


@dataclass
class Watched:
    """A scheduler that notes what it was shown and what it decided."""

    scheduler: Scheduler
    seen: list[tuple[Sequence[RequestView], ClusterView, Sequence[Dispatch]]] = field(default_factory=list)

    def initial(self) -> Any:
        return self.scheduler.initial()

    def step(self, state: Any, queue: Any, cluster: Any, now_s: float) -> Any:
        state, dispatches, again_s = self.scheduler.step(state, queue, cluster, now_s)
        self.seen.append((queue, cluster, dispatches))
        return state, dispatches, again_s


@dataclass
class Outcome:
    """What came of a run. Answers and durations are in the order of the load; states and views are from its end."""

    answers: list[list[int]]
    ends_s: list[float]
    rounds: list[tuple[Sequence[RequestView], ClusterView, Sequence[Dispatch]]]
    records: dict[str, list[StepRecord]]
    refused: list[str]
    states: dict[str, WorkerState]
    views: list[WorkerView]

    @property
    def dispatches(self) -> list[Dispatch]:
        return [dispatch for _, _, dispatches in self.rounds for dispatch in dispatches]

    @property
    def placements(self) -> list[tuple[RequestView, Placement]]:
        """Every placement with the request as the policy saw it."""
        return [
            (next(r for r in queue if r.request_id == placement.request_id), placement)
            for queue, _, dispatches in self.rounds
            for dispatch in dispatches
            for placement in dispatch.placements
        ]


def load(seed: int, requests: int, rate: float, longest: int = 4000, most_osl: int = 150) -> list[Asked]:
    """Poisson arrivals; lengths from a few tokens to `longest`; some prompts share a beginning."""
    rng = random.Random(f"load/{seed}")
    shared = [rng.randrange(3, 32_000) for _ in range(longest)]
    asked, at_s = [], 0.0
    for _ in range(requests):
        at_s += rng.expovariate(rate)
        length = max(1, int(longest ** rng.random()))
        common = rng.randrange(length) if rng.random() < 0.3 else 0
        prompt = shared[:common] + [rng.randrange(3, 32_000) for _ in range(length - common)]
        osl = 1 if rng.random() < 0.05 else rng.randrange(1, most_osl)
        asked.append(Asked(at_s, tuple(prompt), osl, Slo(ttft_s=rng.choice([0.5, 2.0, 10.0]))))
    return asked


def run(policy: Policy, asked: Sequence[Asked], profile: Profile = H200, **more: Any) -> Outcome:
    """Serve a load in virtual time by 2 + 2 workers."""
    return run_virtual(_serve(policy, asked, profile, **more))


async def _serve(
    policy: Policy,
    asked: Sequence[Asked],
    profile: Profile,
    seed: int = 0,
    gateways: int = 1,
    sim_store_tokens: int = 4_000_000,
    **more: Any,
) -> Outcome:
    watched = Watched(policy.scheduler())
    more.setdefault("latency_s", 0.0005)
    config = Config(cluster=ClusterConfig(prefill=2, decode=2), engine=EngineConfig(sim_store_tokens=sim_store_tokens))
    cluster = LocalCluster(VirtualRuntime(seed), config, replace(policy, scheduler=lambda: watched), profile, **more)
    await cluster.start()
    for number in range(1, gateways):
        await cluster.add_gateway(f"g{number + 1}")
    refused = _listen_to_refusals(cluster)
    await asyncio.sleep(1.0)
    ends_s = [0.0] * len(asked)
    answers = await asyncio.gather(*(_ask(cluster, each, ends_s, place) for place, each in enumerate(asked)))
    records = {worker_id: await engine.take_records() for worker_id, engine in cluster.engines.items()}
    await asyncio.sleep(1.0)
    states = {worker_id: worker.state() for worker_id, worker in cluster.workers.items()}
    views = [view for gateway in cluster.gateways.values() for view in gateway.cluster().workers]
    await cluster.stop()
    return Outcome(list(answers), ends_s, watched.seen, records, refused, states, views)


async def _ask(cluster: LocalCluster, asked: Asked, ends_s: list[float], place: int) -> list[int]:
    await asyncio.sleep(asked.at_s)
    now_s = cluster.runtime.now()
    sampling = Sampling(max_tokens=asked.osl_tokens, temperature=0.0, ignore_eos=True)
    gateways = list(cluster.gateways.values())
    stream = gateways[place % len(gateways)].open(Inbound(list(asked.prompt), sampling, asked.slo, now_s + DEADLINE_S))
    answer: list[int] = []
    async for piece in stream:
        assert piece.index == len(answer)
        answer += piece.tokens
    ends_s[place] = cluster.runtime.now() - now_s
    return answer


def _listen_to_refusals(cluster: LocalCluster) -> list[str]:
    """Reasons of the work that workers did not take."""
    refused: list[str] = []
    for worker in cluster.workers.values():
        reply = worker._reply

        def note(reason: Any, message: str = "", reply: Any = reply) -> Any:
            refused.extend([reason] if reason else [])
            return reply(reason, message)

        worker._reply = note  # type: ignore[method-assign]
    return refused
