"""The three odd policies on real engines: output as from one engine alone, and steps that show the policy was kept."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from dopd.bus.memory import MemoryBroker
from dopd.config import GatewayConfig, WorkerConfig
from dopd.engine.contract import StepRecord
from dopd.engine.vllm.settings import VllmSettings
from dopd.policy import policy_named
from dopd.policy.base import Policy
from dopd.runtime.clock import RealRuntime
from dopd.slo import Slo
from dopd.worker.host import Worker
from dopd_gateway.service import Gateway
from dopd_gateway.stream import Inbound
from dopd_proto.request import Sampling
from tests.engine_rig import Rig, job, prompt
from tests.policies.dyna import LatencyBudget
from tests.policy_rig import Watched

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

STEP_S = 0.02  # leaves about 100 prompt tokens in a step


class Borrowed:
    """The engine of a rig under a worker: neither started nor stopped, only listened to."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rig.engine, name)

    async def start(self, on_output: Any) -> None:
        self._rig.engine._on_output = on_output  # type: ignore[attr-defined]

    async def stop(self) -> None:
        await self._rig.engine.set_budget(None)
        self._rig.engine._on_output = self._rig.on_output  # type: ignore[attr-defined]


@asynccontextmanager
async def cluster(policy: Policy, *rigs: Rig) -> AsyncIterator[tuple[Gateway, Watched]]:
    """A gateway and a worker per rig, in this process."""
    runtime, broker, watched = RealRuntime(), MemoryBroker(), Watched(policy.scheduler())
    policy = replace(policy, scheduler=lambda: watched)
    gateway = Gateway("g1", policy, broker.connect("g1"), runtime, GatewayConfig(), "tiny")
    await gateway.start()
    workers = []
    for rig, role in zip(rigs, ("prefill", "decode"), strict=True):
        first: Any = "mixed" if policy.first_roles == "mixed" else role
        bus = broker.connect(role)
        workers.append(Worker(f"w-{role}", first, Borrowed(rig), bus, runtime, WorkerConfig(), "tiny"))  # type: ignore[arg-type]
        await workers[-1].start()
        await rig.engine.set_budget(policy.budget)
        await rig.engine.take_records()
    await asyncio.sleep(0.6)
    yield gateway, watched
    await gateway.stop()
    for worker in workers:
        await worker.stop()


async def serve(gateway: Gateway, asked: Sequence[tuple[list[int], int]]) -> list[list[int]]:
    """Everybody comes within a second."""
    rng = random.Random("arrivals")

    async def one(tokens: list[int], osl: int) -> list[int]:
        await asyncio.sleep(rng.random())
        sampling = Sampling(max_tokens=osl, temperature=0.0, ignore_eos=True)
        deadline_s = gateway._runtime.now() + 120.0
        stream = gateway.open(Inbound(tokens, sampling, Slo(), deadline_s))
        return [token async for piece in stream for token in piece.tokens]

    return list(await asyncio.gather(*(one(*each) for each in asked)))


@pytest.mark.parametrize("name", ["dyna", "bucket", "uellm"])
async def test_a_policy_changes_when_and_where_and_never_what(
    settings: VllmSettings, a: Rig, b: Rig, alone: Rig, name: str
) -> None:
    rng = random.Random(name)
    asked = [(prompt(rng.randrange(1, 700), seed=n), rng.randrange(1, 40)) for n in range(24)]
    params = {"dyna": {"step_s": STEP_S}, "bucket": {"step_tokens": settings.max_num_batched_tokens}}.get(name, {})
    policy = policy_named(f"tests.policies.{name}:{name.upper()}", params)
    async with cluster(policy, a, b) as (gateway, watched):
        answers = await serve(gateway, asked)
        records = [await rig.engine.take_records() for rig in (a, b)]
        assert sum(worker.waiting for worker in gateway.cluster().workers) == 0
    truth = await alone.run(*(job(tokens, osl) for tokens, osl in asked))
    assert answers == [done.tokens for done in truth]
    for each in records:
        CHECKS[name](each, watched)


def batch_of(watched: Watched) -> dict[str, int]:
    return {
        placement.request_id: number
        for number, dispatch in enumerate(dispatch for _, _, dispatches in watched.seen for dispatch in dispatches)
        for placement in dispatch.placements
    }


def the_budget_held(records: list[StepRecord], watched: Watched) -> None:
    for record in records:
        prefill = sum(record.tokens.values()) - record.decodes
        assert prefill <= LatencyBudget(STEP_S).prefill_tokens(record.decodes, 0, 0), record


def batches_started_as_one(records: list[StepRecord], watched: Watched) -> None:
    batches, seen, starts = batch_of(watched), set[str](), set[tuple[int, int]]()
    for record in records:
        new = {job_id for job_id in record.tokens if job_id.endswith(".p")} - seen
        starts |= {(batches[job_id.split(".", 1)[0]], record.step) for job_id in new}
        seen |= new
    assert max(Counter(batch for batch, _ in starts).values(), default=1) == 1


def batches_ran_to_completion(records: list[StepRecord], watched: Watched) -> None:
    batches = batch_of(watched)
    order = [{batches[job_id.split(".", 1)[0]] for job_id in record.tokens} for record in records]
    assert all(len(each) == 1 for each in order)
    turns = [each for place, each in enumerate(order) if not place or order[place - 1] != each]
    assert len(turns) == len({number for each in turns for number in each})


CHECKS = {"dyna": the_budget_held, "bucket": batches_started_as_one, "uellm": batches_ran_to_completion}
