"""KV that one engine computed and another one used, proved by counts, by output, and by tampering.

LMCache holds whole chunks of 32 tokens. What an engine takes from the store is the longest prefix of its input in whole
chunks, less one token where that is the whole input, for one token must be computed to have any output.
"""

import asyncio
import mmap
from collections.abc import Sequence
from pathlib import Path

import pytest

from dopd.engine.contract import Cached, JobOutput
from dopd.engine.vllm.store import LmcacheStore
from tests.engine_rig import Rig, job, prompt, tag

# Engines start in 10 s on idle cores, in minutes beside other tests.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

CHUNK = 32
NEW = 24


def whole_chunks(tokens: int) -> int:
    """Tokens of a stored prefix that an input of so many tokens can use."""
    return min(tokens // CHUNK * CHUNK, tokens - 1)


async def expected_output(alone: Rig, tokens: Sequence[int], new: int = NEW) -> list[int]:
    done = await alone.one(job(tokens, new))
    assert done.cached.store_tokens == 0  # its own work from the first token to the last
    return done.tokens


@pytest.mark.parametrize("length", [64, 95, 96, 777, 1500])
async def test_prefill_here_and_decode_there_equals_one_engine(a: Rig, b: Rig, alone: Rig, length: int) -> None:
    tokens = prompt(length)
    expected = await expected_output(alone, tokens)
    first = await a.one(job(tokens, 1))
    rest = await b.one(job(tokens + first.tokens, NEW - 1, prompt_tokens=length))
    assert first.tokens + rest.tokens == expected
    whole = length // CHUNK * CHUNK
    assert rest.cached == Cached(local_tokens=0, store_tokens=whole)
    fetch_s, fetched_s, scheduled_s = rest.cached.fetch_s, rest.cached.fetched_s, rest.cached.scheduled_s
    assert fetch_s is not None and fetched_s is not None and scheduled_s is not None
    assert first.times_s[-1] <= fetch_s <= fetched_s <= scheduled_s <= rest.times_s[0]


@pytest.mark.parametrize("length", [64, 96])
async def test_of_a_prompt_in_whole_chunks_one_token_is_computed(a: Rig, b: Rig, alone: Rig, length: int) -> None:
    tokens = prompt(length)
    await a.one(job(tokens, 1))
    done = await b.one(job(tokens, NEW))
    assert done.tokens == await expected_output(alone, tokens)
    assert done.cached == Cached(local_tokens=0, store_tokens=length - 1)


async def test_a_prompt_that_nobody_computed_comes_from_nowhere(b: Rig) -> None:
    done = await b.one(job(prompt(500), 1))
    assert done.cached == Cached(local_tokens=0, store_tokens=0)


async def test_roles_turn_round_with_nothing_restarted(a: Rig, b: Rig, alone: Rig) -> None:
    tokens = prompt(500)
    await b.one(job(tokens, 1, emit=False))
    done = await a.one(job(tokens, NEW))
    assert done.tokens == await expected_output(alone, tokens)
    assert done.cached.store_tokens == 480


async def test_own_cache_comes_before_the_store(a: Rig, b: Rig) -> None:
    tokens = prompt(640)
    await b.one(job(tokens[:320], 1))
    await a.one(job(tokens, 1))
    done = await b.one(job(tokens, 1))
    assert done.cached == Cached(local_tokens=320, store_tokens=319)


@pytest.mark.parametrize("cut", [200, 300, 500])
async def test_a_cut_anywhere_gives_the_output_of_one_engine(a: Rig, b: Rig, alone: Rig, cut: int) -> None:
    """A prompt of 300 tokens, cut inside it, at its end, and 200 tokens after it."""
    tokens, new = prompt(300), 250
    expected = await expected_output(alone, tokens, new)
    if cut < 300:
        await a.one(job(tokens[:cut], 1, emit=False))
        made: list[int] = []
    else:
        # To have KV of `cut` tokens, the token after them is made, too.
        made = (await a.one(job(tokens, cut - 300 + 1))).tokens
    rest = await b.one(job(tokens + made, new - len(made), prompt_tokens=300))
    assert made + rest.tokens == expected
    computed = cut // CHUNK * CHUNK
    assert rest.cached.store_tokens == computed


@pytest.mark.parametrize("length", [300, 777, 1500])
async def test_there_is_no_race_between_the_end_of_a_prefill_and_its_fetch(a: Rig, b: Rig, length: int) -> None:
    tokens = prompt(length)
    first, second = job(tokens, 1), job(tokens, 1)
    listen = a.on_output

    def hand_over(outputs: Sequence[JobOutput]) -> None:
        listen(outputs)
        if any(output.job_id == first.job_id and output.end for output in outputs):
            b.submit(second)

    a.engine._on_output = hand_over  # type: ignore[attr-defined]  # within the very call that brings the token
    try:
        a.submit(first)
        assert (await b.finished(second)).cached.store_tokens == whole_chunks(length)
    finally:
        a.engine._on_output = listen  # type: ignore[attr-defined]


async def test_made_tokens_are_stored_only_where_the_setting_says_so(a: Rig, b: Rig, alone: Rig) -> None:
    tokens = prompt(64)
    for rig, other, stored in ((a, b, 256), (alone, alone, 64)):
        made = (await rig.one(job(tokens, 200))).tokens
        # The lone engine has nobody to fetch from but the store, once it has forgotten its own cache.
        assert await other.engine._core.call("reset_prefix_cache", False, False)  # type: ignore[attr-defined]
        done = await other.one(job(tokens + made, 1, prompt_tokens=64))
        assert done.cached.store_tokens == stored


async def test_kv_changed_in_the_store_changes_the_output(a: Rig, b: Rig, alone: Rig, store: LmcacheStore) -> None:
    tokens = prompt(777)
    expected = await expected_output(alone, tokens)
    await a.one(job(tokens, 1))
    _overwrite(store.segments[0], 0.5)
    done = await b.one(job(tokens, NEW))
    assert done.cached.store_tokens == 768
    assert done.tokens != expected
    await store.clear()
    assert await b.engine._core.call("reset_prefix_cache", False, False)  # type: ignore[attr-defined]


async def test_kv_lost_from_the_store_is_computed_anew_and_seen(
    a: Rig, b: Rig, alone: Rig, store: LmcacheStore
) -> None:
    tokens = prompt(400)
    await a.one(job(tokens, 1))
    await store.clear()
    done = await b.one(job(tokens, NEW))
    assert done.tokens == await expected_output(alone, tokens)
    assert done.cached == Cached(local_tokens=0, store_tokens=0)


async def test_a_batch_whose_members_fetch_in_different_steps_starts_in_one(a: Rig, b: Rig) -> None:
    texts = [prompt(length) for length in (40, 500, 90, 900, 33, 640)]
    stored = texts[1::2]
    await a.run(*(job(text, 1) for text in stored))
    batch = tag(len(texts))
    jobs = [job(text, 3, batch=batch) for text in texts]
    await b.engine.take_records()
    # They arrive apart, and every second one has to fetch.
    for each in jobs:
        b.submit(each)
        await asyncio.sleep(0.01)
    ended = [await b.finished(each) for each in jobs]
    assert [done.cached.store_tokens for done in ended] == [0, 480, 0, 896, 0, 639]
    first = (await b.records_of(*jobs))[0]
    computed = [len(text) - done.cached.store_tokens for text, done in zip(texts, ended, strict=True)]
    assert first.tokens == {each.job_id: count for each, count in zip(jobs, computed, strict=True)}


def _overwrite(segment: Path, value: float) -> None:
    import numpy

    with segment.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        pool = numpy.frombuffer(memory, dtype=numpy.float32)
        pool[pool != 0] = value
        del pool
