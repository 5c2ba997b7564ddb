"""What every policy's step budget keeps, on made-up steps of an engine."""

import copy
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd.perf.profile import PROFILES
from dopd.policy import POLICIES, budget_from, policy_named
from dopd.policy.base import Ground, Policy, StepBudget, StepLimit, StepView, WaitingView
from dopd.slo import Slo
from tests.contract.test_policies import ALL

GROUND = Ground(PROFILES["h200-llama-3.1-8b-fp8-tp1"], Slo())
BUDGETED = {name: policy for name, policy in ALL.items() if policy.budget is not None}
every_budget = pytest.mark.parametrize("policy", BUDGETED.values(), ids=BUDGETED)
properties = settings(max_examples=100, deadline=None)


def make(policy: Policy) -> StepBudget:
    """With the numbers of the profile and the targets, where it asks for them."""
    named = policy_named(policy.name, None, GROUND) if policy.name in POLICIES else policy
    assert named.budget is not None
    return budget_from(named.budget)


def a_waiting(rng: random.Random, number: int) -> WaitingView:
    return WaitingView(
        f"j{number}", rng.choice([1, 40, 900, 20_000]), rng.random() * 3, rng.random() < 0.8,
        rng.choice(["", "b1", "b2"]), rng.choice([1, 2]), rng.random() < 0.2,
    )  # fmt: skip


def a_step(rng: random.Random) -> StepView:
    decodes, prefills = rng.choice([0, 0, 1, 8, 200]), rng.choice([0, 0, 1, 3])
    return StepView(
        decodes=decodes, context_tokens=decodes * rng.randrange(1, 3000), prefills=prefills,
        exclusive_running=rng.random() < 0.1, waiting=[a_waiting(rng, n) for n in range(rng.randrange(5))],
        max_tokens=8192, max_running=256, prefill_context_tokens=prefills * rng.randrange(5000),
    )  # fmt: skip


def limits(budget: StepBudget, seed: int, count: int = 12) -> list[StepLimit]:
    rng, made = random.Random(seed), []
    state = budget.initial()
    for _ in range(count):
        state, limit = budget.limit(state, a_step(rng))
        made.append(limit)
    return made


@every_budget
@properties
@given(seed=st.integers(0, 1 << 32))
def test_the_same_steps_bring_the_same_limits(policy: Policy, seed: int) -> None:
    assert limits(make(policy), seed) == limits(make(policy), seed)


@every_budget
@properties
@given(seed=st.integers(0, 1 << 32))
def test_all_memory_is_in_the_state(policy: Policy, seed: int) -> None:
    budget, rng = make(policy), random.Random(seed)
    first, second = a_step(rng), a_step(rng)
    state, _ = budget.limit(budget.initial(), first)
    kept = copy.deepcopy(state)
    once = budget.limit(state, second)
    assert once == budget.limit(kept, second) == make(policy).limit(kept, second)


@every_budget
@properties
@given(seed=st.integers(0, 1 << 32))
def test_a_limit_is_a_number_of_tokens_and_of_requests(policy: Policy, seed: int) -> None:
    for limit in limits(make(policy), seed):
        assert limit.max_tokens is None or (limit.max_tokens >= 0 and isinstance(limit.max_tokens, int))
        assert limit.max_running is None or (limit.max_running >= 0 and isinstance(limit.max_running, int))
        assert limit.gate in ("open", "batch", "closed")


@every_budget
@pytest.mark.parametrize("tokens", [1, 300, 20_000])
def test_a_prompt_alone_in_an_idle_engine_starts(policy: Policy, tokens: int) -> None:
    """Whatever was done before: nothing is held back for ever."""
    budget, rng = make(policy), random.Random(tokens)
    state: Any = budget.initial()
    for _ in range(20):
        state, _ = budget.limit(state, a_step(rng))
    alone = StepView(0, 0, 0, False, [WaitingView("j", tokens, 1.0)], 8192, 256)
    for _ in range(3):
        state, limit = budget.limit(state, alone)
        if limit.gate != "closed" and limit.max_running != 0 and limit.max_tokens != 0:
            return
    pytest.fail(f"{limit} holds it back")


@every_budget
@pytest.mark.parametrize("decodes", [1, 64, 256])
def test_decodes_alone_are_never_held_back(policy: Policy, decodes: int) -> None:
    _, limit = make(policy).limit(make(policy).initial(), StepView(decodes, 1000 * decodes, 0, False, [], 8192, 256))
    assert limit.max_tokens is None or limit.max_tokens >= decodes
