"""More of everything than an engine has room for: batches, priorities, aborts, policies that change, little memory."""

import asyncio
import random

import pytest
from msgspec.structs import replace

from dopd.engine.contract import Job
from dopd.engine.vllm.engine import VllmEngine
from dopd.engine.vllm.settings import VllmSettings
from dopd.policy.base import BudgetSpec
from dopd.runtime.clock import RealRuntime
from tests.engine_rig import Rig, job, prompt, tag

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

BUDGETS = [
    None,
    BudgetSpec("tests.budgets:FollowDecodes", {"full": 100, "per_decode": 5}),
    BudgetSpec("tests.budgets:RunToCompletion"),
    BudgetSpec("tests.budgets:AtMost", {"running": 6}),
]


def crowd(rng: random.Random, prefixes: list[list[int]]) -> list[Job]:
    """One job, or a batch, of which a member may be missing."""
    batch = tag(rng.choice([1, 2, 4, 6]), exclusive=rng.random() < 0.3) if rng.random() < 0.4 else None
    size = batch.size - (batch.size > 1 and rng.random() < 0.1) if batch else 1
    return [
        job(
            rng.choice(prefixes)[: rng.choice([100, 200, 300])] + prompt(rng.randrange(1, 300)),
            rng.randrange(1, 100),
            batch=batch,
            priority=rng.choice([0, 0, 0, 1, 5]),
        )
        for _ in range(size)
    ]


async def test_in_a_crowd_every_job_ends_once_with_its_own_tokens_and_no_memory_is_lost(settings: VllmSettings) -> None:
    rng = random.Random(0)
    # 2272 tokens of KV for up to 8 requests of up to 700 tokens: some have to start over.
    small = replace(settings, kv_cache_memory_bytes=9 << 20, max_model_len=1024, max_num_seqs=8)
    rig = Rig(VllmEngine(replace(small, max_num_batched_tokens=256), RealRuntime()))
    await rig.engine.start(rig.on_output)
    try:
        prefixes = [prompt(300) for _ in range(8)]
        jobs: list[Job] = []
        for _ in range(40):
            jobs += (new := crowd(rng, prefixes))
            rig.submit(*new)
            if rng.random() < 0.2:
                await rig.engine.set_budget(rng.choice(BUDGETS))
            if rng.random() < 0.2:
                rig.engine.abort(rng.choice(jobs).job_id)
            await asyncio.sleep(0.05 * rng.random())
        ended = [await rig.finished(each, timeout_s=200) for each in jobs]
        await asyncio.sleep(0.3)
        ends = [[output.end for output in rig.outputs[each.job_id] if output.end] for each in jobs]
        assert {len(end) for end in ends} == {1}
        assert {end[0] for end in ends} == {"length", "aborted"}
        whole = [(each, done) for each, done in zip(jobs, ended, strict=True) if done.end == "length"]
        assert all(len(done.tokens) == each.max_new_tokens for each, done in whole)
        load = rig.engine.load()
        assert (load.running, load.waiting, load.kv_used_tokens, load.alive) == (0, 0, 0, True)
        await rig.engine.set_budget(None)
        for each, done in whole[:: len(whole) // 8]:
            assert (await rig.one(job(each.tokens, each.max_new_tokens))).tokens == done.tokens
    finally:
        await rig.engine.stop()
