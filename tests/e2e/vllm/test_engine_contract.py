"""The engine contract on vLLM, and what the contract leaves to each engine."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from dopd.errors import BadRequest, ConfigError
from dopd.policy.base import BudgetSpec
from dopd_proto.request import Sampling
from tests.contract.engine_suite import CHECKS
from tests.engine_rig import Rig, job, prompt

pytestmark = pytest.mark.asyncio(loop_scope="session")

END = 2  # the tiny model's end token


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_vllm_keeps_the_engine_contract(a: Rig, check: Callable[[Rig], Awaitable[None]]) -> None:
    await check(a)


async def test_a_token_outside_of_the_vocabulary_is_refused_and_does_not_end_the_engine(a: Rig) -> None:
    with pytest.raises(BadRequest):
        a.engine.submit(job([5, 1024], 1))
    assert (await a.one(job(prompt(10), 1))).end == "length"


async def test_an_unknown_budget_is_refused(a: Rig) -> None:
    with pytest.raises(ConfigError):
        await a.engine.set_budget(BudgetSpec("tests.budgets:Nothing"))
    assert (await a.one(job(prompt(10), 1))).end == "length"


async def test_a_budget_with_a_bug_costs_the_policy_and_not_the_requests(a: Rig) -> None:
    await a.engine.set_budget(BudgetSpec("tests.budgets:Broken"))
    try:
        assert (await a.one(job(prompt(10), 3))).end == "length"
    finally:
        await a.engine.set_budget(None)


async def test_lengths_count_from_the_end_of_the_prompt(a: Rig) -> None:
    tokens = prompt(30)
    sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
    whole = await a.one(job(tokens, 100, sampling=sampling))
    assert len(whole.tokens) == 12
    rest = await a.one(job(tokens + whole.tokens[:5], 100, prompt_tokens=30, sampling=sampling))
    assert rest.tokens == whole.tokens[5:]
    assert rest.end == "length"


async def test_the_end_token_ends_a_job_but_not_before_the_minimum_length(a: Rig) -> None:
    tokens = prompt(30)
    hot = Sampling(max_tokens=1900, temperature=2.0, seed=7)
    early = await a.one(job(tokens, 1900, sampling=hot))
    assert (early.end, early.tokens[-1]) == ("stop", END)
    shortest = len(early.tokens) + 5
    later = await a.one(job(tokens, 1900, sampling=msgspec.structs.replace(hot, min_tokens=shortest)))
    assert len(later.tokens) >= shortest
    assert END not in later.tokens[: shortest - 1]


async def test_a_frozen_engine_makes_no_steps_and_goes_on_when_it_thaws(a: Rig) -> None:
    [child] = a.engine.child_pids  # type: ignore[attr-defined]
    os.kill(child, signal.SIGSTOP)
    try:
        await asyncio.sleep(0.1)
        frozen = job(prompt(20), 3)
        a.submit(frozen)
        steps = a.engine.load().steps
        await asyncio.sleep(1.0)
        load = a.engine.load()
        assert (load.steps, load.waiting, load.alive) == (steps, 1, True)
    finally:
        os.kill(child, signal.SIGCONT)
    assert (await a.finished(frozen)).end == "length"
    assert a.engine.load().steps > steps
