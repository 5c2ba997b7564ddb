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
from dopd_planner import core
from dopd_proto.telemetry import WorkerState
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


# --- what load does -------------------------------------------------------------------------------------------------


ROUNDS, ROUND_S = 60, 1.0
EARLIER_S = 4096.0
"""Exact in binary, so that differences of times are the same."""


def even(waiting: int = 0, decoding: int = 0, kv_share: float = 0.0, decodes_waiting: int = 0) -> ClusterView:
    """Four workers of each role. `waiting` prompts of 2,000 tokens at each prefill worker; each decode worker decodes
    so many requests, has used this share of its memory, and as many requests wait there."""
    prefill = WorkerView(
        worker_id="p", incarnation="i", role="prefill", epoch=1, serving=True, running=min(1, waiting), waiting=waiting,
        queued_prefill_tokens=2000 * waiting, kv_total_tokens=945_029,
    )  # fmt: skip
    decode = replace(
        prefill, role="decode", running=decoding, decoding=decoding, waiting=decodes_waiting, queued_prefill_tokens=0,
        context_tokens=1000 * decoding, kv_used_tokens=int(kv_share * 945_029),
    )  # fmt: skip
    workers = [replace(prefill, worker_id=f"p{n}") for n in range(4)]
    return ClusterView((*workers, *(replace(decode, worker_id=f"w{n}") for n in range(4))))


def settled(policy: Policy, forecast: ForecastView, cluster: ClusterView, start_s: float = 1000.0) -> list[Plan]:
    """Plans of a minute in which nothing changes but roles, which are given as planned. A worker that
    changes its role takes its work along."""
    planner, made = make(policy), []
    state = planner.initial()
    for number in range(ROUNDS):
        now_s = start_s + ROUND_S * number
        state, plan = planner.plan(state, replace(forecast, start_s=now_s, horizon_s=10.0), cluster, Slo(), now_s)
        workers = (replace(worker, role=plan.roles.get(worker.worker_id, worker.role)) for worker in cluster.workers)
        cluster = replace(cluster, workers=tuple(workers))
        made.append(plan)
    return made


def moved(made: Sequence[Plan]) -> int:
    """So many more prefill workers in the end."""
    roles = {worker_id: role for plan in made for worker_id, role in plan.roles.items()}
    return sum((role == "prefill") - worker_id.startswith("p") for worker_id, role in roles.items())


@every_planner
def test_a_load_that_one_worker_of_each_kind_could_do_moves_nobody(policy: Policy) -> None:
    """With milliseconds taken for seconds, or counts for rates, any load asks for all workers (algorithms.md 1.7)."""
    made = settled(policy, ForecastView(0.5, 500.0, 0.0, 50.0), even(decoding=1, kv_share=0.01))
    assert not any(plan.roles for plan in made), [plan for plan in made if plan.roles][:1]


@every_planner
@pytest.mark.parametrize("kind", ["prompts", "answers"])
def test_a_load_for_one_pool_alone_never_makes_that_pool_smaller(policy: Policy, kind: str) -> None:
    if kind == "prompts":
        made = settled(policy, ForecastView(30.0, 8000.0, 0.0, 2.0), even(waiting=60))
        assert moved(made) >= 0
    else:
        made = settled(policy, ForecastView(40.0, 50.0, 0.0, 1500.0), even(0, 120, 0.95, 30))
        assert moved(made) <= 0


@every_planner
@settings(max_examples=15, deadline=None)
@given(
    rate=st.floats(1, 60), isl=st.floats(50, 6000), osl=st.floats(2, 600), less=st.integers(0, 30),
    more=st.integers(1, 60),
)  # fmt: skip
def test_more_prompts_waiting_never_mean_fewer_prefill_workers(
    policy: Policy, rate: float, isl: float, osl: float, less: int, more: int
) -> None:
    forecast = ForecastView(rate, isl, 0.0, osl)
    few, many = (moved(settled(policy, forecast, even(waiting, 10, 0.1))) for waiting in (less, less + more))
    assert many >= few


@every_planner
@properties
@given(seed=st.integers(0, 1 << 32))
def test_only_differences_of_times_count(policy: Policy, seed: int) -> None:
    """A clock counts from wherever it likes: from a run's start, or from 1970."""

    def planned(start_s: float) -> list[Plan]:
        planner, made = make(policy), []
        state = planner.initial()
        for number, (forecast, cluster) in enumerate(turns(seed, 12)):
            now_s = start_s + 5.0 * number
            if forecast is not None:
                forecast = replace(forecast, start_s=now_s - 5.0 * (number % 3), horizon_s=10.0)
            state, plan = planner.plan(state, forecast, cluster, Slo(), now_s)
            made.append(plan)
        return made

    assert planned(1024.0) == planned(1024.0 + EARLIER_S)


@every_planner
@properties
@given(seed=st.integers(0, 1 << 32))
def test_what_is_commanded_empties_no_pool_whatever_the_planner_says(policy: Policy, seed: int) -> None:
    """Workers come, go and change between rounds; `due` has the last word."""
    seen = turns(seed, 12)
    for (_, cluster), plan in zip(seen, plans(make(policy), seen), strict=True):
        states = {worker.worker_id: a_state(worker) for worker in cluster.workers}
        changes, _ = core.due(states, {}, plan.roles)
        given_to = {state.worker_id: role for state, role in changes}
        for pool in core.POOLS:
            before = [s for s in states.values() if s.phase == "serving" and s.role == pool]
            stay = [s for s in before if s.worker_id not in given_to]
            assert stay or not before or not given_to.keys() & {s.worker_id for s in before}


def a_state(worker: WorkerView) -> WorkerState:
    return WorkerState(
        worker_id=worker.worker_id, incarnation=worker.incarnation, role=worker.role, epoch=worker.epoch,
        phase="serving" if worker.serving else "stalled", model="m", kv_domain="a", sent_s=0.0, lease_s=3.0,
    )  # fmt: skip
