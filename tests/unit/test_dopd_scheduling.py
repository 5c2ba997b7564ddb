"""The scheduling of `dopd`: fewest late prompts, which prompts a decode worker computes, and that nobody starves."""

import random
from dataclasses import replace
from itertools import combinations

import pytest

from dopd.cluster import ClusterView, Role, WorkerView
from dopd.perf.model import prefill_s, step_s, transfer_s
from dopd.perf.profile import PROFILES
from dopd.policy import budget_from, policy_named
from dopd.policy.base import Ground, RequestView, SegmentPlan
from dopd.policy.deadlines import Job, split_late
from dopd.policy.dopd import LengthAware
from dopd.policy.paced import Paced
from dopd.policy.seating import rides_along
from dopd.slo import Slo

H100 = PROFILES["h100-llama-70b-fp8-tp2"]
GROUND = Ground(H100)


def worker(worker_id: str, role: Role, **more: int) -> WorkerView:
    given = WorkerView(worker_id, worker_id, role, 0, True, credit=50, kv_total_tokens=260_000, kv_domain="a")
    return replace(given, **more)


def request(number: int, isl: int = 1000, at_s: float = 0.0, **more: object) -> RequestView:
    given = RequestView(f"r{number}", isl, isl, 100.0, 0.0, 100, Slo(), 0, at_s)
    return replace(given, **more)  # type: ignore[arg-type]


def decided(
    *workers: WorkerView, queue: list[RequestView], now_s: float = 0.0, room: int = 1_000_000, **params: float
) -> dict[str, tuple[SegmentPlan, ...]]:
    scheduler = LengthAware(GROUND, **params)
    _, dispatches, _ = scheduler.step(scheduler.initial(), queue, ClusterView(workers, {"a": room}), now_s)
    return {p.request_id: p.segments for dispatch in dispatches for p in dispatch.placements}


# --- deadlines ------------------------------------------------------------------------------------------------------


def some_jobs(rng: random.Random, count: int) -> list[Job]:
    return [Job(request(number), rng.uniform(0.05, 1.0), rng.uniform(0.1, 3.0)) for number in range(count)]


def in_time(jobs: tuple[Job, ...], workers: int) -> bool:
    """Whether list scheduling by due time (each on the worker that is free first) ends all of them in time."""
    free = [0.0] * workers
    for job in jobs:
        place = free.index(min(free))
        free[place] += job.work_s
        if free[place] > job.due_s + 1e-12:
            return False
    return True


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_has_fewer_late_jobs(seed: int) -> None:
    jobs = some_jobs(random.Random(f"late/{seed}"), 9)
    timely, late = split_late(jobs, 0.0, 0.0, 1)
    by_due = sorted(jobs, key=lambda job: job.due_s)
    most = max(n for n in range(10) if any(in_time(chosen, 1) for chosen in combinations(by_due, n)))
    assert len(timely) == most
    assert in_time(tuple(timely), 1)
    assert {id(job) for job in [*timely, *late]} == {id(job) for job in jobs}


@pytest.mark.parametrize("seed", range(40))
def test_what_is_chosen_for_several_workers_is_in_time_there(seed: int) -> None:
    rng = random.Random(f"pool/{seed}")
    workers = rng.randrange(2, 6)
    timely, late = split_late(some_jobs(rng, 40), 0.0, 0.0, workers)
    assert timely and late
    assert in_time(tuple(timely), workers)


def test_of_two_priorities_the_lower_is_late() -> None:
    first, second = Job(request(1, priority=1), 1.0, 1.2), Job(request(2), 0.5, 1.2)
    assert split_late([first, second], 0.0, 0.0, 1) == ([first], [second])
    assert split_late([replace(first, request=request(1)), second], 0.0, 0.0, 1)[0] == [second]


# --- where prompts go -----------------------------------------------------------------------------------------------


def test_a_prompt_is_ultra_short_while_its_kv_would_be_later_than_the_step_is_longer() -> None:
    chunk = H100.chunk_tokens
    for tokens in range(1, 6000, 37):
        rest = tokens % chunk
        with_all = step_s(H100, tokens, tokens**2, 1, 0)
        with_rest = step_s(H100, rest, rest**2, 1, 0)
        for wait_s in (0.0, 0.02, 0.3):
            assert rides_along(H100, tokens, wait_s) == (
                with_all - with_rest <= transfer_s(H100, tokens - rest) + wait_s + 1e-12
            )
    assert all(rides_along(H100, tokens, 0.0) for tokens in range(1, chunk))
    assert not rides_along(H100, 4 * chunk, 0.0)
    assert rides_along(H100, 2 * chunk, 0.0) is False
    assert rides_along(replace(H100, transfer_fixed_s=0.1), 2 * chunk, 0.0), "with a slow transfer the bound is higher"


def test_an_ultra_short_prompt_is_computed_where_it_decodes_unless_that_has_no_time() -> None:
    pool = worker("p1", "prefill")
    short = request(1, isl=100)
    assert decided(pool, worker("d1", "decode"), queue=[short])["r1"] == (SegmentPlan("d1"),)
    remote = (SegmentPlan("p1", 100), SegmentPlan("d1"))
    assert decided(pool, worker("d1", "decode"), queue=[short], local=0)["r1"] == remote
    busy = worker("d1", "decode", running=250, decoding=250, context_tokens=620_000, kv_total_tokens=2_000_000)
    assert decided(pool, busy, queue=[short])["r1"] == remote
    full = worker("d1", "decode", running=9, decoding=9, context_tokens=250_000, kv_used_tokens=250_000)
    assert decided(pool, full, queue=[short])["r1"] == remote


def test_a_prompt_goes_to_a_decode_worker_when_the_pool_would_be_late_or_later() -> None:
    far = worker("p1", "prefill", queued_prefill_tokens=20_000)
    assert decided(far, worker("d1", "decode"), queue=[request(1)])["r1"] == (SegmentPlan("d1"),)
    assert decided(far, worker("d1", "decode"), queue=[request(1)], local=0) == {}
    long_one = request(1, isl=8000)
    assert decided(far, worker("d1", "decode"), queue=[long_one]) == {}, "answers would wait behind it for too long"


def test_only_what_is_not_cached_counts() -> None:
    cached = request(1, isl=30_000, uncached_tokens=120)
    assert decided(worker("p1", "prefill"), worker("d1", "decode"), queue=[cached])["r1"] == (SegmentPlan("d1"),)


def test_late_prompts_go_last_and_only_to_an_idle_worker() -> None:
    gone, fresh = request(1, isl=500), request(2, isl=6000, at_s=2.5)
    workers = (worker("p1", "prefill"), worker("d1", "decode"))
    assert list(decided(*workers, queue=[gone, fresh], now_s=3.0, local=0)) == ["r2"]
    assert list(decided(*workers, queue=[gone], now_s=3.0, local=0)) == ["r1"]
    assert list(decided(*workers, queue=[gone, fresh], now_s=3.0, local=0, late_last=0)) == ["r1", "r2"]


def test_who_only_decodes_goes_first_and_to_the_worker_with_memory() -> None:
    stored = request(3, isl=2000, uncached_tokens=1, kv_tokens=1999, at_s=1.0)
    full = worker("d1", "decode", running=2, decoding=2, context_tokens=200_000, kv_used_tokens=200_000)
    many = worker("d2", "decode", running=20, decoding=20, context_tokens=40_000, kv_used_tokens=40_000)
    plan = decided(worker("p1", "prefill"), full, many, queue=[request(1), stored], now_s=1.0)
    assert list(plan) == ["r3", "r1"]
    assert plan["r3"] == (SegmentPlan("d2"),)


def test_a_prompt_whose_answer_would_be_too_slow_waits_and_slows_down_nobody() -> None:
    slow = worker("d1", "decode", running=250, decoding=250, context_tokens=1_200_000, kv_total_tokens=9_000_000)
    pool = worker("p1", "prefill")
    scheduler = LengthAware(GROUND)
    view = ClusterView((pool, slow), {"a": 100_000})
    _, dispatches, again_s = scheduler.step(0.0, [request(1)], view, 0.0)
    assert not dispatches and again_s is not None and 1.0 < again_s < 2.0
    for later_s in (again_s, again_s + 1.0, 10.0):
        _, dispatches, again = scheduler.step(0.0, [request(1)], view, later_s)
        assert not dispatches and again is None, "it is late now: no better place will make it good"


def test_the_limit_of_the_answer_is_not_looked_at() -> None:
    rng = random.Random("blind")
    queue = [request(number, rng.randrange(1, 9000), rng.random()) for number in range(40)]
    told = [replace(one, max_new_tokens=rng.randrange(2, 500), osl_std_tokens=1.0) for one in queue]
    workers = [worker(f"p{n}", "prefill") for n in range(2)] + [worker(f"d{n}", "decode") for n in range(3)]
    assert decided(*workers, queue=queue, now_s=1.5) == decided(*workers, queue=told, now_s=1.5)


def bound_after_s(late_share: float) -> float | None:
    """When a long late prompt is bound, while as many prompts come that are in time as two workers can compute."""
    scheduler = LengthAware(GROUND, late_share=late_share, local=0)
    state, old = scheduler.initial(), request(0, isl=8000)
    work_s = prefill_s(H100, 2000)
    for turn in range(1000):
        now_s = 3.0 + turn * work_s / 2
        view = ClusterView((worker("p1", "prefill", queued_prefill_tokens=1000), worker("d1", "decode")), {"a": 10**6})
        fresh = request(1 + turn, isl=2000, at_s=now_s)
        state, dispatches, _ = scheduler.step(state, [old, fresh], view, now_s)
        ids = {placement.request_id for dispatch in dispatches for placement in dispatch.placements}
        assert f"r{1 + turn}" in ids or "r0" in ids
        if "r0" in ids:
            return now_s
    return None


def test_a_late_prompt_is_served_under_endless_load_by_its_share() -> None:
    assert bound_after_s(0.0) is None
    served_s = bound_after_s(0.05)
    assert served_s is not None and served_s > 20.0, "only after ten times its target"


def test_the_ablations_are_parameters() -> None:
    whole = policy_named("dopd", {"local": 0, "lengths": 0, "late_last": 0, "paced": 0}, GROUND)
    assert whole.budget is not None
    budget = budget_from(whole.budget)
    assert isinstance(budget, Paced) and whole.budget.params["prefill_token_s"] == H100.prefill_token_s
    assert policy_named("dopd").scheduler().initial() == 0.0
