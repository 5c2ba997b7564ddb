"""A dead KV store costs time and a recompute, never a request, and no restart of an engine."""

import asyncio
import time

import pytest

from dopd.engine.vllm.store import LmcacheStore
from tests.engine_rig import Rig, job, prompt, tag

# Engines start in 10 s on idle cores, in minutes beside other tests.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def settled(*rigs: Rig, ok: bool) -> None:
    async with asyncio.timeout(20):
        while any(rig.engine.load().store_ok != ok for rig in rigs):  # noqa: ASYNC110  # a state, not an event
            await asyncio.sleep(0.05)


async def test_engines_outlive_their_store_and_use_it_when_it_is_back(
    a: Rig, b: Rig, alone: Rig, store: LmcacheStore
) -> None:
    text = prompt(700)
    expected = (await alone.one(job(text, 20))).tokens
    store.kill()
    # At once, before any heartbeat can have been missed.
    first = job(text, 20)
    submitted_s = time.time()
    done = await a.one(first)
    assert done.tokens == expected
    # One look-up that ends by its time-out of 1 s; after it nobody waits for the store.
    print(f"first token {done.times_s[0] - submitted_s:.2f} s after the store died")
    assert done.times_s[0] - submitted_s < 10
    await settled(a, b, alone, ok=False)
    assert a.engine.load().alive
    assert (await b.one(job(text, 20))).tokens == expected

    await store.start()
    await settled(a, b, alone, ok=True)
    again = prompt(1500)
    await a.one(job(again, 1))
    assert (await b.one(job(again, 1))).cached.store_tokens == 1472


async def test_a_batch_starts_although_the_store_dies_while_it_looks(a: Rig, store: LmcacheStore) -> None:
    batch = tag(3)
    store.kill()
    done = await a.run(*(job(prompt(100), 3, batch=batch) for _ in range(3)))
    assert [each.end for each in done] == ["length"] * 3
    await store.start()
    await settled(a, ok=True)
