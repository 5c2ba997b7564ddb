"""What every policy keeps, whoever wrote it: by itself on made-up views, and in whole virtual clusters."""

import ast
import copy
import inspect
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd.cluster import ClusterView, WorkerView
from dopd.policy import POLICIES
from dopd.policy.base import Dispatch, Placement, Policy, RequestView, Role, SegmentPlan
from dopd.policy.static_split import static_split
from dopd.slo import Slo
from tests.policies.bucket import BUCKET
from tests.policies.dyna import DYNA, LatencyBudget
from tests.policies.uellm import UELLM
from tests.policy_rig import DEADLINE_S, H200, NARROW, Asked, Outcome, load, run

ALL = {policy.name: policy for policy in (*POLICIES.values(), static_split(2, 2), DYNA, BUCKET, UELLM)}
IMPURE = {"asyncio", "time", "random", "logging", "structlog", "os", "dopd.bus", "dopd.runtime", "dopd.ledger"}

every_policy = pytest.mark.parametrize("policy", ALL.values(), ids=ALL)

# --- a policy by itself ---------------------------------------------------------------------------------------------


Round = tuple[list[RequestView], ClusterView]


def a_worker(rng: random.Random, number: int, roles: Sequence[Role]) -> WorkerView:
    total = rng.randrange(200_000)
    return WorkerView(
        worker_id=f"w{number}", incarnation=f"w{number}-1", epoch=rng.randrange(3), role=rng.choice(roles),
        serving=rng.random() < 0.8, credit=rng.choice([0, 1, 12]), running=rng.choice([0, 0, 2]),
        waiting=rng.choice([0, 0, 1]), queued_prefill_tokens=rng.randrange(50_000), kv_total_tokens=total,
        kv_used_tokens=rng.randrange(total + 1), kv_domain=rng.choice("ab"),
    )  # fmt: skip


def a_request(rng: random.Random, number: int) -> RequestView:
    isl, left = rng.choice([1, 300, 20_000]) + rng.randrange(100), rng.choice([1, 2, 2000])
    done = rng.choice([0, 0, isl - 1])
    return RequestView(
        request_id=f"r{number}", isl_tokens=isl, uncached_tokens=isl - done, osl_tokens=rng.random() * left,
        osl_std_tokens=rng.random() * 100, max_new_tokens=left, slo=Slo(rng.random() * 10), priority=rng.randrange(3),
        arrived_s=number / 10, attempt=rng.randrange(3), kv_tokens=done,
        avoid=frozenset(rng.sample(["w0", "w1"], rng.randrange(3))),
    )  # fmt: skip


def a_round(policy: Policy, seed: int, waiting: int, workers: int) -> Round:
    """What a scheduler may be shown; the workers have the roles that the policy gives them."""
    rng = random.Random(seed)
    roles: Sequence[Role] = ["mixed"] if policy.first_roles == "mixed" else ["prefill", "decode", "mixed"]
    some = tuple(a_worker(rng, number, roles) for number in range(workers))
    room = {domain: rng.choice([-5, 400, 100_000]) for domain in "ab"}
    return [a_request(rng, number) for number in range(waiting)], ClusterView(some, room)


rounds = st.tuples(st.integers(0, 1 << 32), st.integers(0, 20), st.integers(0, 5))
properties = settings(max_examples=200, deadline=None)


def decide(policy: Policy, *turns: tuple[Sequence[RequestView], ClusterView]) -> tuple[Any, Sequence[Dispatch]]:
    """State and decisions after these turns."""
    scheduler = policy.scheduler()
    state, dispatches = scheduler.initial(), []
    for now_s, (queue, cluster) in enumerate(turns):
        state, dispatches, _ = scheduler.step(state, queue, cluster, float(now_s))
    return state, dispatches


@every_policy
@properties
@given(first=rounds, second=rounds)
def test_the_same_views_bring_the_same_decisions(policy: Policy, first: Any, second: Any) -> None:
    once, again = ([a_round(policy, *turn) for turn in (first, second)] for _ in range(2))
    assert decide(policy, *once) == decide(policy, *again)


@every_policy
@properties
@given(first=rounds, second=rounds)
def test_all_memory_is_in_the_state(policy: Policy, first: Any, second: Any) -> None:
    scheduler, turn = policy.scheduler(), a_round(policy, *second)
    state, _, _ = scheduler.step(scheduler.initial(), *a_round(policy, *first), 0.0)
    kept = copy.deepcopy(state)
    once = scheduler.step(state, *turn, 1.0)
    assert state == kept
    assert once == scheduler.step(state, *turn, 1.0) == policy.scheduler().step(kept, *turn, 1.0)


@every_policy
@properties
@given(before=rounds, turn=rounds)
def test_decisions_keep_to_what_the_views_allow(policy: Policy, before: Any, turn: Any) -> None:
    queue, cluster = a_round(policy, *turn)
    _, dispatches = decide(policy, a_round(policy, *before), (queue, cluster))
    check_decisions(queue, cluster, dispatches)


@every_policy
@properties
@given(first=rounds, second=rounds)
def test_only_differences_of_times_count(policy: Policy, first: Any, second: Any) -> None:
    """A clock counts from wherever it likes: from a run's start, or from 1970."""
    decided = []
    for start_s in (0.0, 4096.0):
        scheduler, dispatches = policy.scheduler(), []
        state = scheduler.initial()
        for number, turn in enumerate((first, second)):
            queue, cluster = a_round(policy, *turn)
            shifted = [replace(r, arrived_s=start_s + round(8 * r.arrived_s) / 8) for r in queue]
            shifted = [replace(r, slo=Slo(round(8 * r.slo.ttft_s) / 8)) for r in shifted]
            state, made, _ = scheduler.step(state, shifted, cluster, start_s + number)
            dispatches.append(made)
        decided.append(dispatches)
    assert decided[0] == decided[1]


@every_policy
@properties
@given(turn=rounds)
def test_no_request_and_no_worker_bring_no_decision(policy: Policy, turn: Any) -> None:
    queue, cluster = a_round(policy, *turn)
    assert not decide(policy, ([], cluster))[1]
    assert not decide(policy, (queue, ClusterView(())))[1]


@every_policy
def test_a_policy_imports_nothing_that_has_effects(policy: Policy) -> None:
    module = sys.modules[policy.scheduler.__module__]  # type: ignore[attr-defined]
    tree = ast.parse(inspect.getsource(module))
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    plain |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in plain if name in IMPURE or name.split(".")[0] in IMPURE or name[:11] == "dopd.engine"}


def check_decisions(queue: Sequence[RequestView], cluster: ClusterView, dispatches: Sequence[Dispatch]) -> None:
    """One call's decisions against what it was shown."""
    asked = {request.request_id: request for request in queue}
    workers = {worker.worker_id: worker for worker in cluster.workers}
    placements = [placement for dispatch in dispatches for placement in dispatch.placements]
    assert all(dispatch.placements for dispatch in dispatches)
    ids = [placement.request_id for placement in placements]
    assert len(ids) == len(set(ids)), "a request was placed twice"
    assert set(ids) <= asked.keys(), "a request that does not wait was placed"
    taken: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for placement in placements:
        request, segments = asked[placement.request_id], placement.segments
        assert 1 <= len(segments) <= 2
        for place, plan in enumerate(segments):
            last = request.isl_tokens + request.max_new_tokens
            assert plan.stop is None or 0 < plan.stop <= last, "a cut outside of the request"
            assert place + 1 == len(segments) or plan.stop is not None, "a first segment without an end"
            if plan.worker_id is not None:
                worker = workers[plan.worker_id]
                right = ("mixed", "decode" if plan.stop is None else "prefill")
                assert worker in cluster.serving(*right), f"{plan} of a {worker.role} worker"
                taken[plan.worker_id] += 1
        first = workers[segments[0].worker_id]  # type: ignore[index]
        if len(segments) == 2 and segments[1].worker_id != first.worker_id:
            stored[first.kv_domain] += segments[0].stop or 0
    for worker_id, count in taken.items():
        assert count <= workers[worker_id].credit, f"{worker_id} was given more than its credit"
    for domain, tokens in stored.items():
        assert tokens <= cluster.kv_room_tokens.get(domain, 0), f"KV store {domain} was given more than its budget"


# --- whole clusters -------------------------------------------------------------------------------------------------

CALM = load(1, 60, 10.0)
RUSH = load(2, 200, 400.0, longest=3000, most_osl=60)
LONG_PROMPTS = load(3, 80, 40.0, longest=12_000, most_osl=30)
TIGHT = load(4, 80, 60.0, longest=1500, most_osl=200)
RUNS = {"calm": (CALM, H200), "rush": (RUSH, H200), "long": (LONG_PROMPTS, H200), "tight": (TIGHT, NARROW)}
_outcomes: dict[tuple[str, str], Outcome] = {}


def outcome_of(policy: Policy, name: str) -> Outcome:
    """The run, once for all tests that look at it."""
    if (policy.name, name) not in _outcomes:
        asked, profile = RUNS[name]
        _outcomes[policy.name, name] = run(policy, asked, profile)
    return _outcomes[policy.name, name]


every_run = pytest.mark.parametrize("name", RUNS)


@every_policy
@every_run
def test_every_answer_is_exact_and_in_time(policy: Policy, name: str) -> None:
    outcome = outcome_of(policy, name)
    assert outcome.answers == [asked.answer for asked in RUNS[name][0]]
    assert max(outcome.ends_s) < DEADLINE_S


@every_policy
@every_run
def test_no_decision_of_a_run_is_refused_or_made_twice(policy: Policy, name: str) -> None:
    outcome = outcome_of(policy, name)
    assert outcome.refused == []
    for queue, cluster, dispatches in outcome.rounds:
        check_decisions(queue, cluster, dispatches)
    # Once, or where the policy left the second segment open once for each; anything more is an attempt that failed.
    for left_open in (False, True):
        made = [r.request_id for r, p in outcome.placements if (p.segments[-1].worker_id is None) == left_open]
        assert len(made) == len(set(made))


@every_policy
@every_run
def test_kv_is_found_where_it_was_promised_and_nothing_is_left_behind(policy: Policy, name: str) -> None:
    outcome = outcome_of(policy, name)
    for state in outcome.states.values():
        assert (state.kv_misses, state.running, state.waiting, state.kv_used_tokens) == (0, 0, 0, 0)
    for view in outcome.views:
        assert (view.running, view.waiting, view.queued_prefill_tokens) == (0, 0, 0)
        assert view.credit > 0


@every_policy
def test_a_run_can_be_repeated_bit_by_bit(policy: Policy) -> None:
    asked = load(5, 60, 60.0)
    first, second = (run(policy, asked, seed=7) for _ in range(2))
    assert first.ends_s == second.ends_s
    assert first.records == second.records
    assert first.dispatches == second.dispatches


@every_policy
@pytest.mark.parametrize("seed", range(10, 14))
def test_answers_are_exact_for_more_loads(policy: Policy, seed: int) -> None:
    asked = load(seed, 80, 30.0 * (seed % 4 + 1), longest=2000 * (seed % 3 + 1))
    outcome = run(policy, asked, NARROW if seed % 2 else H200, seed=seed, together=seed % 4 == 0)
    assert outcome.answers == [each.answer for each in asked]
    assert outcome.refused == []


@every_policy
def test_several_gateways_share_the_workers(policy: Policy) -> None:
    asked = load(6, 120, 200.0, longest=3000, most_osl=60)
    outcome = run(policy, asked, gateways=3)
    assert outcome.answers == [each.answer for each in asked]
    assert outcome.refused == []


@every_policy
def test_prompts_in_flight_stay_within_the_kv_budget(policy: Policy) -> None:
    asked = load(8, 80, 200.0, longest=2000, most_osl=80)
    outcome = run(policy, asked, sim_store_tokens=24_000)
    assert outcome.answers == [each.answer for each in asked]
    assert min(room for _, cluster, _ in outcome.rounds for room in cluster.kv_room_tokens.values()) >= 0
    assert sum(state.kv_misses for state in outcome.states.values()) == 0


@dataclass
class Odd:
    """First come, first served on two workers, with the second segment wherever the test wants it."""

    second: str | None
    cut: int = 0

    def initial(self) -> None:
        return None

    def step(self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float) -> Any:
        place = [
            Dispatch((Placement(request.request_id, self.segments(request)),))
            for request in queue[: min(worker.credit for worker in cluster.workers)]
        ]
        return state, place, None

    def segments(self, request: RequestView) -> tuple[SegmentPlan, ...]:
        if request.kv_tokens:
            return (SegmentPlan("w2"),)
        stop = max(1, min(request.isl_tokens + self.cut, request.isl_tokens + request.max_new_tokens))
        return (SegmentPlan("w1", stop), SegmentPlan(self.second))


@pytest.mark.parametrize("cut", [-500, 0, 7])
@pytest.mark.parametrize("second", ["w1", "w2", None])
def test_a_second_segment_may_be_on_the_same_worker_or_found_later(second: str | None, cut: int) -> None:
    asked = load(9, 40, 40.0, longest=2000, most_osl=40)
    outcome = run(replace(DYNA, scheduler=lambda: Odd(second, cut), budget=None), asked)
    assert outcome.answers == [each.answer for each in asked]
    assert sum(state.kv_misses for state in outcome.states.values()) == 0
    assert [view.waiting for view in outcome.views] == [0, 0, 0, 0]


def test_a_prefill_worker_that_is_done_gets_more_at_once() -> None:
    rng = random.Random(0)
    asked = [Asked(0.0, tuple(rng.randrange(3, 32_000) for _ in range(200)), 1, Slo()) for _ in range(320)]
    outcome = run(POLICIES["simple"], asked)
    # 16 prompts at a time on 2 workers: 10 rounds, each far shorter than the 0.25 s between heartbeats.
    assert max(outcome.ends_s) < 10 * 0.1


# --- what the engines did -------------------------------------------------------------------------------------------


def batches_of(outcome: Outcome) -> dict[str, str]:
    """The batch of each request, by worker and number."""
    return {
        placement.request_id: f"{number}.{placement.segments[0].worker_id}"
        for number, dispatch in enumerate(outcome.dispatches)
        for placement in dispatch.placements
        if dispatch.together
    }


def request_of(job_id: str) -> str:
    return job_id.split(".", 1)[0]


@pytest.mark.parametrize("name", ["calm", "rush", "tight", "gateways"])
def test_uellm_runs_a_batch_to_completion(name: str) -> None:
    outcome = run(UELLM, RUSH, gateways=3) if name == "gateways" else outcome_of(UELLM, name)
    batch_of = batches_of(outcome)
    sizes = Counter(batch_of.values())
    assert max(sizes.values()) <= 10
    assert name == "calm" or max(sizes.values()) > 3
    for records in outcome.records.values():
        order = [{batch_of[request_of(job_id)] for job_id in record.tokens} for record in records]
        assert all(len(batches) == 1 for batches in order)
        runs = [batch for place, (batch,) in enumerate(order) if not place or order[place - 1] != {batch}]
        assert len(runs) == len(set(runs)), "a batch was interrupted by another"


@pytest.mark.parametrize("name", ["rush", "tight"])
def test_a_batch_of_bucketserve_starts_in_one_step(name: str) -> None:
    policy = BUCKET if name == "rush" else replace(BUCKET, scheduler=lambda: BUCKET.scheduler(step_tokens=2048))
    outcome = run(policy, RUNS[name][0], RUNS[name][1])
    batch_of = batches_of(outcome)
    assert max(Counter(batch_of.values()).values()) > 3
    starts: dict[str, set[tuple[str, int]]] = {}
    for worker_id, records in outcome.records.items():
        seen: set[str] = set()
        for record in records:
            for job_id in record.tokens.keys() - seen:
                if job_id.endswith(".p"):
                    starts.setdefault(batch_of[request_of(job_id)], set()).add((worker_id, record.step))
            seen |= record.tokens.keys()
    assert {batch: len(steps) for batch, steps in starts.items() if len(steps) > 1} == {}
    assert len(starts) == len(set(batch_of.values()))


def test_bucketserve_forms_buckets_of_like_lengths() -> None:
    outcome = outcome_of(BUCKET, "rush")
    lengths = {request.request_id: request.isl_tokens for request, _ in outcome.placements}
    spreads = [
        max(lengths[p.request_id] for p in dispatch.placements)
        - min(lengths[p.request_id] for p in dispatch.placements)
        for dispatch in outcome.dispatches
        if len(dispatch.placements) > 1
    ]
    assert spreads and min(spreads) < 500


def test_dynaserve_cuts_before_at_and_behind_the_end_of_the_prompt() -> None:
    cuts = [
        (placement.segments[0].stop or 0) - request.isl_tokens
        for name in RUNS
        for request, placement in outcome_of(DYNA, name).placements
        if len(placement.segments) == 2
    ]
    assert min(cuts) < 0 < max(cuts)
    assert 0 in cuts


@every_run
def test_the_budget_of_dynaserve_holds_in_every_step(name: str) -> None:
    budget = LatencyBudget()
    chunked = 0
    for records in outcome_of(DYNA, name).records.values():
        for record in records:
            prefill = sum(record.tokens.values()) - record.decodes
            assert prefill <= budget.prefill_tokens(record.decodes, 0, 0)
            chunked += prefill > 0
    assert chunked
