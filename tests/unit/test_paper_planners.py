"""The released planners' rules, on worked numbers: DOPD's sizes, its clamp and its loop, and DYN-SLA's sizes."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import ceil

import pytest

from dopd.cluster import ClusterView, WorkerView
from dopd.perf.model import prefill_s, step_s
from dopd.perf.profile import named
from dopd.policy import dopd_paper, dyn_sla
from dopd.policy.base import ForecastView, Ground, Plan, Planner, Role
from dopd.policy.pools import GIVE_UP_S, NOTHING, Intervals, Pace, Swaps, clamp, starts, swaps_to
from dopd.slo import Slo
from tests.planner_rig import after, split_of, worker

H200 = named("h200-llama-3.1-8b-fp8-tp1")
AUTHORS = replace(
    H200, prefill_fixed_s=0.092, prefill_token_s=65e-6, prefill_token2_s=0.0, decode_fixed_s=0.0215,
    decode_request_s=0.0, decode_context_s=0.109e-6, kv_total_tokens=2040 * 128, block_tokens=128,
)  # fmt: skip
"""The authors' constants: 2040 blocks of 128, and their static runs (algorithms.md 1.7 and 1.12)."""
NOBODY = ClusterView(())


def forecast(rate: float = 18.8, isl: float = 1000.0, osl: float = 245.0) -> ForecastView:
    return ForecastView(rate, isl, 0.0, osl)


def a_worker(number: int, role: Role, **more: object) -> WorkerView:
    return worker(f"w{number}", role, **{"running": 1, **more})


def a_cluster(prefill: int, decode: int, **more: object) -> ClusterView:
    roles: list[Role] = ["prefill"] * prefill + ["decode"] * decode
    return ClusterView(tuple(a_worker(number, role, **more) for number, role in enumerate(roles)))


# --- DOPD's sizes -----------------------------------------------------------------------------------------------------


def test_the_worked_example_comes_to_three_prefill_workers_and_one_decode_worker() -> None:
    sized = dopd_paper.sizes(AUTHORS, 10.0, forecast(), NOBODY, Slo())
    assert (sized.prefill, sized.decode) == (3, 1)
    assert sized.inputs["concurrency"] == 226  # floor(2040 / 9 blocks of 128 for 1122.5 tokens)
    assert sized.inputs["prefill_s"] == pytest.approx(0.157)
    assert sized.inputs["step_s"] == pytest.approx(0.0491, abs=1e-4)
    # 226 * 0.157 / (245 * 0.0491) = 2.95, and 188 requests in an interval against 226.


def test_times_are_seconds_and_not_what_the_unit_defect_made_of_them() -> None:
    # In milliseconds the prompt's time would make it 2,950 workers, and the clamp 3P1D for any load (1.7).
    # Here it depends on the load: 256 * 0.0985 / (500 * 0.0313) = 1.61.
    assert dopd_paper.sizes(AUTHORS, 10.0, forecast(isl=100.0, osl=500.0), NOBODY, Slo()).prefill == 2
    assert clamp(2950, 1, 5, gpus=(1, 2)) == (3, 1)
    assert clamp(2950, 1, 8, gpus=(1, 2)) == (6, 1)


def test_requests_of_an_interval_stand_for_concurrency() -> None:
    decode = [dopd_paper.sizes(AUTHORS, 10.0, forecast(rate), NOBODY, Slo()).decode for rate in (22.6, 22.7, 45.2, 50)]
    assert decode == [1, 2, 2, 3]
    assert dopd_paper.sizes(AUTHORS, 20.0, forecast(22.6), NOBODY, Slo()).decode == 2


def test_prefill_is_sized_for_one_decode_worker_whatever_the_load() -> None:
    assert {dopd_paper.sizes(AUTHORS, 10.0, forecast(rate), NOBODY, Slo()).prefill for rate in (1, 20, 200)} == {3}


def test_a_decode_worker_holds_no_more_than_its_engine_runs() -> None:
    assert dopd_paper.concurrency(H200, 1122.5) == 256
    assert dopd_paper.concurrency(replace(H200, max_running=10_000), 1122.5) == 945_029 // 16 // 71
    assert dopd_paper.concurrency(AUTHORS, 1e9) == 1


def test_prompts_are_taken_as_no_shorter_than_what_was_profiled() -> None:
    one, hundred = (dopd_paper.sizes(AUTHORS, 10.0, forecast(isl=isl), NOBODY, Slo()) for isl in (1.0, 100.0))
    assert one.inputs["prefill_s"] == hundred.inputs["prefill_s"] == prefill_s(AUTHORS, 100)


def test_a_decode_step_that_is_slower_than_profiled_asks_for_less_prefill() -> None:
    as_profiled = step_s(AUTHORS, 0, 0, 50, 50 * 1122.5)
    cluster = a_cluster(2, 2, decoding=50, step_s=2 * as_profiled)
    assert dopd_paper.decode_correction(AUTHORS, cluster, 1122.5) == pytest.approx(2.0)
    assert dopd_paper.sizes(AUTHORS, 10.0, forecast(), cluster, Slo()).prefill == 2  # 2.95 / 2
    assert dopd_paper.decode_correction(AUTHORS, a_cluster(2, 2), 1122.5) == 1.0


# --- the clamp --------------------------------------------------------------------------------------------------------


def test_the_clamp_favours_prefill_and_may_waste_a_gpu() -> None:
    assert clamp(4, 2, 5, gpus=(1, 2)) == (2, 1)  # four of five GPUs
    assert clamp(3, 1, 5, gpus=(1, 2)) == (3, 1)
    assert clamp(13, 6, 4) == (2, 2)
    assert clamp(1, 9, 4) == (1, 3)
    assert clamp(9, 1, 4) == (3, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_clamp_keeps_the_budget_and_one_of_each(seed: int) -> None:
    rng = random.Random(f"clamp/{seed}")
    for _ in range(200):
        most = rng.randrange(2, 20)
        prefill, decode = clamp(rng.randrange(1, 5000), rng.randrange(1, 5000), most)
        assert prefill >= 1 <= decode and prefill + decode <= most


# --- DYN-SLA's sizes --------------------------------------------------------------------------------------------------


def test_dyn_sla_divides_expected_tokens_by_what_a_worker_makes() -> None:
    sized = dyn_sla.sizes(AUTHORS, forecast(18.8), NOBODY, Slo(tpot_s=0.05))
    assert dyn_sla.prefill_tokens_per_s(AUTHORS, 1000.0) == pytest.approx(1000 / 0.157)
    assert sized.prefill == ceil(18.8 * 1000 / (1000 / 0.157)) == 3
    # All of the memory takes 0.04996 s a step: 232.6 requests of 1122.5 tokens, 4,656 tokens/s.
    assert sized.inputs["decode_tokens_per_s"] == pytest.approx(232.6 / 0.04996, rel=1e-3)
    assert sized.decode == ceil(18.8 * 245 / 4656) == 1
    assert dyn_sla.sizes(AUTHORS, forecast(19.1), NOBODY, Slo(tpot_s=0.05)).decode == 2


def test_dyn_sla_takes_the_first_share_of_memory_that_meets_the_target() -> None:
    half = dyn_sla.decode_tokens_per_s(AUTHORS, 0.0357, 1000.0)
    cell = next(n for n in range(99, -1, -1) if 0.0215 + 0.109e-6 * 261_120 * n / 99 <= 0.0357)
    assert half == pytest.approx(cell / 99 * 261.12 / (0.0215 + 0.109e-6 * 261_120 * cell / 99))
    assert dyn_sla.decode_tokens_per_s(AUTHORS, 0.001, 1000.0) == pytest.approx(1 / 0.021609)


def test_dyn_sla_gives_slow_steps_a_tighter_target() -> None:
    slow = a_cluster(2, 2, decoding=50, step_s=1.4 * step_s(AUTHORS, 0, 0, 50, 50 * 1122.5))
    free, corrected = (dyn_sla.sizes(AUTHORS, forecast(30), seen, Slo(tpot_s=0.05)) for seen in (NOBODY, slow))
    assert corrected.inputs["decode_tokens_per_s"] < free.inputs["decode_tokens_per_s"]
    assert corrected.decode > free.decode


@pytest.mark.parametrize("make", [dopd_paper.planner, dyn_sla.planner])
def test_more_requests_never_need_fewer_workers(make: Callable[[Ground], Intervals]) -> None:
    size = make(Ground(AUTHORS))._size
    sized = [size(forecast(rate), NOBODY, Slo()) for rate in (0.1, 1, 5, 20, 80, 300)]
    assert sized[0].decode < sized[-1].decode
    for less, more in pairwise(sized):
        assert less.prefill <= more.prefill and less.decode <= more.decode


# --- the loop ---------------------------------------------------------------------------------------------------------


def rounds(
    planner: Planner, cluster: ClusterView, forecasts: list[ForecastView | None]
) -> list[tuple[ClusterView, Plan]]:
    """A round each half second, every plan carried out at once."""
    state, made = planner.initial(), []
    for number, seen in enumerate(forecasts):
        state, plan = planner.plan(state, seen, cluster, Slo(), 100 + number / 2)
        cluster = after(cluster, plan)
        made.append((cluster, plan))
    return made


PROMPTS, ANSWERS = forecast(18.8, 4000.0, 20.0), forecast(90.0, 100.0, 400.0)


@pytest.mark.parametrize("make", [dopd_paper.planner, dyn_sla.planner])
def test_roles_follow_the_load_one_change_per_round_every_ten_seconds(make: Callable[[Ground], Intervals]) -> None:
    made = rounds(make(Ground(AUTHORS)), a_cluster(4, 4), [PROMPTS] * 41 + [ANSWERS] * 60)
    assert all(len(plan.roles) <= 1 for _, plan in made)
    assert not any(plan.roles for _, plan in made[:20]), "the first interval is only looked at"
    split = [split_of(cluster) for cluster, _ in made]
    assert split[40][0] > 4 and split[-1][1] > split[40][1]
    assert all(sum(each) == 8 and min(each) >= 1 for each in split)
    assert {plan.reason for _, plan in made} == {"first_interval", "sized", "changing"}


def test_the_same_views_bring_the_same_plans() -> None:
    loads: list[ForecastView | None] = [PROMPTS] * 30 + [None] * 25 + [ANSWERS] * 30
    once, again = (rounds(dopd_paper.planner(Ground(AUTHORS)), a_cluster(4, 4), loads) for _ in range(2))
    assert once == again


def at_the_interval(planner: Intervals, cluster: ClusterView, seen: ForecastView | None) -> Plan:
    return planner.plan(Pace(NOTHING, 10.0, 0.0), seen, cluster, Slo(), 60.0)[1]


def test_a_round_that_cannot_size_says_why() -> None:
    planner, busy, idle = dopd_paper.planner(Ground(AUTHORS)), a_cluster(4, 4), a_cluster(4, 4, running=0)
    assert at_the_interval(planner, busy, None).reason == "no_forecast"
    assert at_the_interval(planner, busy, None).needs
    assert at_the_interval(planner, idle, PROMPTS).reason == "idle"
    assert at_the_interval(planner, a_cluster(1, 0), PROMPTS).reason == "too_few_workers"
    assert {at_the_interval(planner, busy, forecast(osl=osl)).reason for osl in (0.0, float("nan"))} == {"no_load"}
    assert not any(at_the_interval(planner, busy, seen).roles for seen in (None, forecast(osl=0.0)))
    assert at_the_interval(planner, busy, PROMPTS).reason == "sized"


def test_each_pool_gets_its_one_worker_whatever_is_known() -> None:
    plan = at_the_interval(dopd_paper.planner(Ground(AUTHORS)), a_cluster(3, 0), None)
    assert list(plan.roles.values()) == ["decode"]


def test_what_an_adjustment_said_holds_until_the_next() -> None:
    made = [plan for _, plan in rounds(dopd_paper.planner(Ground(AUTHORS)), a_cluster(3, 1), [forecast()] * 45)]
    assert [plan.reason for plan in made] == ["first_interval"] * 20 + ["sized"] * 25
    assert made[20].inputs == made[39].inputs and made[20].inputs["n_prefill"] == 3


def test_idle_begins_after_fifty_seconds_without_work() -> None:
    planner, cluster = dopd_paper.planner(Ground(AUTHORS)), a_cluster(4, 4, running=0)
    reasons = [plan.reason for _, plan in rounds(planner, cluster, [forecast(0.1)] * 130)]
    assert reasons[40] == "sized" and reasons[100] == "sized" and reasons[120] == "idle"


# --- changes ----------------------------------------------------------------------------------------------------------


def test_workers_that_neither_pool_needs_keep_their_role() -> None:
    assert swaps_to(a_cluster(4, 4), 1, 2, 0.0) == NOTHING
    assert len(swaps_to(a_cluster(4, 4), 1, 6, 0.0).pending) == 2
    assert {role for _, role in swaps_to(a_cluster(4, 4), 6, 1, 0.0).pending} == {"prefill"}


def test_who_has_the_least_work_changes_and_who_is_pinned_does_not() -> None:
    workers = (
        a_worker(0, "prefill", queued_prefill_tokens=9), a_worker(1, "prefill", queued_prefill_tokens=5),
        a_worker(2, "prefill", pinned=True), a_worker(3, "decode"), a_worker(4, "prefill", serving=False),
    )  # fmt: skip
    assert swaps_to(ClusterView(workers), 1, 3, 7.0) == Swaps((("w1", "decode"), ("w0", "decode")), 7.0)


def test_a_change_waits_for_the_one_before_until_it_is_given_up() -> None:
    swaps, cluster = Swaps((("w0", "decode"), ("w1", "decode")), 10.0), a_cluster(3, 1)
    assert swaps.left(cluster, 11.0).next == {"w0": "decode"}
    away = replace(cluster, workers=(a_worker(0, "decode", serving=False), *cluster.workers[1:]))
    assert swaps.left(away, 11.0).next == {"w0": "decode"}
    there = replace(cluster, workers=(a_worker(0, "decode"), *cluster.workers[1:]))
    assert swaps.left(there, 11.0).next == {"w1": "decode"}
    assert swaps.left(replace(cluster, workers=cluster.workers[1:]), 11.0).next == {"w1": "decode"}
    assert swaps.left(cluster, 10.0 + GIVE_UP_S + 1) == NOTHING


def test_cold_changes_take_the_papers_start_times() -> None:
    assert starts() == {}
    assert starts(cold=1) == {"prefill": 30.0, "decode": 45.0}
    assert starts(cold=1, prefill_start_s=3.0)["prefill"] == 3.0
