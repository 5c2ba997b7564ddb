"""What every policy's planner keeps, on made-up clusters and forecasts."""

import ast
import copy
import inspect
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd.cluster import ClusterView, WorkerView
from dopd.policy import POLICIES
from dopd.policy.base import ForecastView, Plan, Planner, Policy, Role
from dopd.slo import Slo
from tests.contract.test_policies import IMPURE

PLANNING = {name: policy for name, policy in POLICIES.items() if policy.planner is not None}
every_planner = pytest.mark.parametrize("policy", PLANNING.values(), ids=PLANNING)
properties = settings(max_examples=100, deadline=None)
Turn = tuple[ForecastView | None, ClusterView]


def a_worker(rng: random.Random, number: int) -> WorkerView:
    roles: Sequence[Role] = ["prefill", "decode"]
    return WorkerView(
        worker_id=f"w{number}", incarnation=f"w{number}-1", role=rng.choice(roles), epoch=rng.randrange(3),
        serving=rng.random() < 0.9, running=rng.choice([0, 3, 80]), waiting=rng.choice([0, 0, 12]),
        decoding=rng.choice([0, 3, 80]), queued_prefill_tokens=rng.randrange(50_000),
        context_tokens=rng.randrange(90_000), kv_used_tokens=rng.randrange(900_000), kv_total_tokens=945_029,
        pinned=rng.random() < 0.1, step_s=rng.choice([0.0, 0.02]),
    )  # fmt: skip


def a_forecast(rng: random.Random) -> ForecastView | None:
    means = (rng.choice([0.0, 0.5, 30.0, 400.0]), rng.choice([50.0, 1000.0, 8000.0]), rng.choice([1.0, 40.0, 400.0]))
    return None if rng.random() < 0.1 else ForecastView(means[0], means[1], means[1] ** 2, means[2])


def turns(seed: int, count: int) -> list[Turn]:
    """The same workers all along; what they do and are expected to do changes."""
    rng = random.Random(seed)
    workers = rng.randrange(9)
    return [
        (a_forecast(rng), ClusterView(tuple(a_worker(rng, n) for n in range(workers)), {}, {}, frozenset(),
                                      rng.choice([0, 90_000]), rng.choice([0, 7])))
        for _ in range(count)
    ]  # fmt: skip


def plans(planner: Planner, seen: Sequence[Turn]) -> list[Plan]:
    """A round each 5 s."""
    state, made = planner.initial(), []
    for number, (forecast, cluster) in enumerate(seen):
        state, plan = planner.plan(state, forecast, cluster, Slo(), 1000 + 5.0 * number)
        made.append(plan)
    return made


def make(policy: Policy) -> Planner:
    assert policy.planner is not None
    return policy.planner()


def serving(cluster: ClusterView, role: Role) -> int:
    return sum(worker.serving and worker.role == role for worker in cluster.workers)


@every_planner
@properties
@given(seed=st.integers(0, 1 << 32))
def test_the_same_views_bring_the_same_plans(policy: Policy, seed: int) -> None:
    assert plans(make(policy), turns(seed, 12)) == plans(make(policy), turns(seed, 12))


@every_planner
@properties
@given(seed=st.integers(0, 1 << 32))
def test_all_memory_is_in_the_state(policy: Policy, seed: int) -> None:
    planner, (first, second) = make(policy), turns(seed, 2)
    state, _ = planner.plan(planner.initial(), *first, Slo(), 1000.0)
    kept = copy.deepcopy(state)
    once = planner.plan(state, *second, Slo(), 1030.0)
    assert state == kept
    assert once == planner.plan(state, *second, Slo(), 1030.0) == make(policy).plan(kept, *second, Slo(), 1030.0)


@every_planner
@properties
@given(seed=st.integers(0, 1 << 32))
def test_a_plan_names_workers_that_are_there_and_says_why(policy: Policy, seed: int) -> None:
    seen = turns(seed, 12)
    for (_, cluster), plan in zip(seen, plans(make(policy), seen), strict=True):
        workers = {worker.worker_id: worker for worker in cluster.workers}
        assert plan.roles.keys() <= workers.keys()
        assert set(plan.roles.values()) <= {"prefill", "decode"}
        assert plan.reason, "a plan without a word"


@every_planner
@properties
@given(seed=st.integers(0, 1 << 32), rate=st.floats(0.1, 500), isl=st.floats(10, 16_000), osl=st.floats(2, 1000))
def test_under_any_steady_load_no_pool_is_emptied_and_nobody_pinned_changes(
    policy: Policy, seed: int, rate: float, isl: float, osl: float
) -> None:
    rng = random.Random(seed)
    roles: Sequence[Role] = ["prefill", "decode"]
    cluster = ClusterView(tuple(replace(a_worker(rng, n), serving=True, role=roles[n % 2]) for n in range(6)))
    planner = make(policy)
    state = planner.initial()
    forecast = ForecastView(rate, isl, isl * isl, osl)
    for number in range(60):
        state, plan = planner.plan(state, forecast, cluster, Slo(), 1000.0 + number)
        pinned = {worker.worker_id for worker in cluster.workers if worker.pinned}
        assert not pinned & plan.roles.keys()
        changed = (replace(worker, role=plan.roles.get(worker.worker_id, worker.role)) for worker in cluster.workers)
        cluster = ClusterView(tuple(changed))
        assert serving(cluster, "prefill") >= 1 <= serving(cluster, "decode")


@every_planner
def test_a_planner_without_workers_or_forecast_says_what_it_needs(policy: Policy) -> None:
    made = plans(make(policy), [(None, ClusterView(()))] * 12)
    assert not any(plan.roles for plan in made)
    assert made[-1].reason and made[-1].needs


@every_planner
def test_a_planner_imports_nothing_that_has_effects(policy: Policy) -> None:
    made: Any = policy.planner.func if isinstance(policy.planner, partial) else policy.planner
    tree = ast.parse(inspect.getsource(sys.modules[made.__module__]))
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    plain |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in plain if name in IMPURE or name.split(".")[0] in IMPURE}
