"""The engine contract on the emulated engine, in virtual time, and what its KV store does to a request."""

import dataclasses
from array import array
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dopd.engine.sim.engine import SimEngine
from dopd.engine.sim.kvstore import LocalStore
from dopd.engine.sim.tokens import draw, prefix_state
from dopd.perf.profile import named
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from tests.contract.engine_suite import CHECKS
from tests.engine_rig import Rig, job, prompt

CHUNK = 32
# The limits of the tiny model, so that one suite fits both engines.
PROFILE = dataclasses.replace(
    named("h200-llama-3.1-8b-fp8-tp1"),
    max_model_len=2048,
    max_running=16,
    max_step_tokens=512,
    chunk_tokens=CHUNK,
    kv_total_tokens=16_384,
)


def virtually(check: Callable[[Rig], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a check on a fresh engine in virtual time."""

    async def main() -> None:
        rig = await new_rig(LocalStore(100_000, CHUNK), **options)
        await check(rig)
        await rig.engine.stop()

    run_virtual(main())


async def new_rig(store: LocalStore, **options: Any) -> Rig:
    rig = Rig(SimEngine(PROFILE, store, VirtualRuntime(), **options))
    await rig.engine.start(rig.on_output)
    return rig


def expected(tokens: list[int], count: int) -> list[int]:
    return draw(prefix_state(array("I", tokens)), 0, count)[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_engine_contract_holds(check: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    virtually(check)


@pytest.mark.parametrize("length", [1, 31, 32, 64, 95, 96, 777, 1500])
def test_a_prompt_computed_elsewhere_is_fetched_in_whole_chunks(length: int) -> None:
    async def main() -> None:
        store = LocalStore(100_000, CHUNK)
        p, d = await new_rig(store), await new_rig(store)
        tokens = prompt(length, seed=length)
        first = await p.one(job(tokens, 1))
        rest = await d.one(job([*tokens, *first.tokens], 23, prompt_tokens=length))
        assert first.tokens + rest.tokens == expected(tokens, 24)
        assert rest.cached.store_tokens == length // CHUNK * CHUNK
        control = await d.one(job(prompt(length), 2))
        assert control.cached.store_tokens == 0

    run_virtual(main())


@pytest.mark.parametrize(
    ("cut", "save_decode", "fetched"),
    [(100, True, 96), (300, True, 288), (300 + 200, True, 480), (300 + 200, False, 288)],
)
def test_a_cut_at_any_token_gives_the_output_of_the_whole(cut: int, save_decode: bool, fetched: int) -> None:
    async def main() -> None:
        store = LocalStore(100_000, CHUNK)
        a, b = await new_rig(store, save_decode=save_decode), await new_rig(store, save_decode=save_decode)
        tokens, most = prompt(300, seed=7), 230
        if cut < len(tokens):
            first = await a.one(job(tokens[:cut], 1, prompt_tokens=300, emit=False))
        else:
            first = await a.one(job(tokens, cut - len(tokens) + 1))
        rest = await b.one(job([*tokens, *first.tokens], most - len(first.tokens), prompt_tokens=300))
        assert first.tokens + rest.tokens == expected(tokens, most)
        assert rest.cached.store_tokens == fetched

    run_virtual(main())


def test_a_store_that_was_emptied_costs_a_recompute_and_shows_in_the_count() -> None:
    async def main() -> None:
        store = LocalStore(100_000, CHUNK)
        p, d = await new_rig(store), await new_rig(store)
        tokens = prompt(300)
        first = await p.one(job(tokens, 1))
        store.clear()
        rest = await d.one(job([*tokens, *first.tokens], 5, prompt_tokens=300))
        assert rest.cached.store_tokens == 0
        assert first.tokens + rest.tokens == expected(tokens, 6)

    run_virtual(main())


def test_a_full_store_drops_what_was_used_least_recently() -> None:
    store = LocalStore(4 * CHUNK, CHUNK)
    keys = [bytes([number]) for number in range(5)]
    store.insert(keys[:4])
    store.match(keys[:1])
    store.insert(keys[4:])
    assert [store.match([key]) for key in keys] == [1, 0, 1, 1, 1]


def test_what_only_the_engines_own_cache_has_goes_back_to_the_store() -> None:
    async def main() -> None:
        store = LocalStore(100_000, CHUNK)
        p, d = await new_rig(store), await new_rig(store)
        tokens = prompt(300)
        await p.one(job(tokens, 1))
        store.clear()
        again = await p.one(job(tokens, 1))
        assert again.cached.local_tokens == 288
        assert (await d.one(job(tokens, 1))).cached.store_tokens == 288

    run_virtual(main())


def test_a_request_that_was_pushed_out_of_memory_still_gives_its_exact_output() -> None:
    async def main() -> None:
        small = dataclasses.replace(PROFILE, kv_total_tokens=1024)
        rig = Rig(SimEngine(small, LocalStore(100_000, CHUNK), VirtualRuntime()))
        await rig.engine.start(rig.on_output)
        jobs = [job(prompt(200, seed=n), 300) for n in range(5)]
        ended = await rig.run(*jobs)
        for each, done in zip(jobs, ended, strict=True):
            assert done.tokens == expected(list(each.tokens), 300)
        assert rig.engine.load().kv_used_tokens == 0

    run_virtual(main())


def test_steps_advanced_together_make_the_same_tokens_at_the_same_times() -> None:
    def run(together: bool) -> dict[str, Any]:
        async def main() -> dict[str, Any]:
            rig = await new_rig(LocalStore(100_000, CHUNK), together=together)
            jobs = [job(prompt(50 + 40 * n, seed=n), 20 + 60 * n) for n in range(12)]
            return {str(n): done for n, done in enumerate(await rig.run(*jobs))}

        return run_virtual(main())

    assert run(True) == run(False)
