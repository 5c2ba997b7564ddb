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
from tests.engine_rig import Rig, job, prompt, tag

# Engines start in 10 s on idle cores, in minutes beside other tests.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

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
    # One token in a thousand is the end token: of 16 texts some end soon.
    hot = [Sampling(max_tokens=300, temperature=2.0, seed=seed) for seed in range(16)]
    early = await a.run(*(job(tokens, 300, sampling=each) for each in hot))
    stopped = [(done, each) for done, each in zip(early, hot, strict=True) if done.end == "stop"]
    assert stopped
    assert all(done.tokens.index(END) == len(done.tokens) - 1 for done, _ in stopped)
    done, sampling = min(stopped, key=lambda pair: len(pair[0].tokens))
    shortest = len(done.tokens) + 5
    later = await a.one(job(tokens, 300, sampling=msgspec.structs.replace(sampling, min_tokens=shortest)))
    assert END not in later.tokens[: shortest - 1]
    assert later.tokens[: len(done.tokens) - 1] == done.tokens[:-1]


async def test_a_lower_priority_number_goes_first(a: Rig) -> None:
    await a.engine.set_budget(BudgetSpec("tests.budgets:AtMost", {"running": 1}))
    try:
        first, later, urgent = job(prompt(20), 60), job(prompt(20), 5, priority=1), job(prompt(20), 5, priority=-1)
        a.submit(first)
        await a.started(first)
        done = await a.run(later, urgent)
        assert done[1].times_s[-1] < done[0].times_s[0]
    finally:
        await a.engine.set_budget(None)


async def test_a_batch_may_have_members_of_any_priority_behind_many_others(a: Rig) -> None:
    batch = tag(3)
    members = [job(prompt(20), 3, batch=batch, priority=priority) for priority in (0, 0, 9)]
    crowd = [job(prompt(20), 20, batch=tag(1)) for _ in range(60)]
    a.submit(members[0], *crowd, *members[1:])
    for each in (*members, *crowd):
        assert (await a.finished(each)).end == "length"


async def test_a_listener_with_a_bug_does_not_end_the_engine(a: Rig) -> None:
    listen = a.engine._on_output  # type: ignore[attr-defined]
    a.engine._on_output = lambda outputs: 1 / 0  # type: ignore[attr-defined]
    a.submit(job(prompt(20), 1))
    await asyncio.sleep(0.3)
    a.engine._on_output = listen  # type: ignore[attr-defined]
    assert a.engine.load().waiting == 0
    assert (await a.one(job(prompt(20), 1))).end == "length"


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
