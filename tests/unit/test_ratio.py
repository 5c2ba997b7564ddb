"""The planner of `dopd` alone: which split it wants, when it changes, whom it takes, and that it always says why."""

from dataclasses import replace
from itertools import pairwise
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd.cluster import ClusterView
from dopd.perf.model import prefill_s
from dopd.perf.profile import PROFILES
from dopd.policy.base import ForecastView, Ground, Plan, SeriesView
from dopd.policy.capacity import Decoder, Demand, Splits, prompts_of
from dopd.policy.ratio import RatioPlanner, State
from dopd.slo import Slo
from tests.planner_rig import after, cluster_of, forecast_of, noisy, split_of, worker

H200 = PROFILES["h200-llama-3.1-8b-fp8-tp1"]
SLO = Slo()
PROMPTS = {"isl": 4000.0, "osl": 50.0}
ANSWERS = {"isl": 300.0, "osl": 600.0}


def rounds(
    planner: RatioPlanner, forecasts: list[ForecastView], cluster: ClusterView
) -> tuple[list[Plan], ClusterView, State]:
    """One plan per forecast, each carried out at once."""
    plans, state = [], planner.initial()
    for forecast in forecasts:
        state, plan = planner.plan(state, forecast, cluster, SLO, forecast.start_s)
        cluster = after(cluster, plan)
        plans.append(plan)
    return plans, cluster, state


def one(planner: RatioPlanner, forecast: ForecastView | None, cluster: ClusterView, now_s: float = 0.0) -> Plan:
    return planner.plan(planner.initial(), forecast, cluster, SLO, now_s)[1]


# --- capacity -------------------------------------------------------------------------------------------------------


def test_the_worked_example_has_three_prefill_workers_to_one_of_decode() -> None:
    """algorithms.md 1.6: ISL 1000, OSL 245, D = TP2, P = TP1, prompts one at a time. Theirs is 2.96 with all of the
    memory; here 0.9 of it is used."""
    prompts = prompts_of(PROFILES["dopd-h100-70b-p-tp1"], 1000.0, 0.0, 0.0)
    decoder = Decoder(PROFILES["dopd-h100-70b-d-tp2"], 0.08, 1000 + 245 / 2)
    assert decoder.binding == "kv_memory" and 200 <= decoder.bound <= 226
    assert decoder.step_s(decoder.bound) == pytest.approx(0.049, abs=0.002)
    rate = decoder.tokens_per_s / 245
    assert rate == pytest.approx(18.0, abs=1.0) and rate * prompts.alone_s == pytest.approx(2.8, abs=0.2)
    splits = Splits(
        PROFILES["dopd-h100-70b-p-tp1"], SLO, Demand(0.9 * rate * prompts.alone_s, 0.9 * rate * 245, 1122.5, prompts),
        decoder, local=False,
    )  # fmt: skip
    assert [splits.judged(n, 1).binding for n in (1, 2, 3)] == ["prefill", "prefill", "kv_memory"]
    assert [splits.judged(n, 1).attainment > 0.9 for n in (1, 2, 3)] == [False, False, True]


def test_times_are_seconds_so_a_demand_of_one_worker_asks_for_one() -> None:
    """With milliseconds taken for seconds every load asks for all workers (algorithms.md 1.7)."""
    rate = 1 / prefill_s(H200, 1000)
    plan = one(RatioPlanner(quantile=0.5), forecast_of(rate, osl=200.0, isl_std=0.0), cluster_of(4, 4))
    assert 0.75 <= plan.inputs["prefill_work"] <= 1.0
    assert 100 < H200.max_running / plan.inputs["worker_tokens_per_s"] * 10_000 < 1000


def test_variance_of_prompt_lengths_is_work() -> None:
    """D6: the mean length under-estimates the mean cost by k2 Var."""
    level, mixed = prompts_of(H200, 4000.0, 0.0, 1.0), prompts_of(H200, 4000.0, 9e6, 1.0)
    assert mixed.alone_s - level.alone_s == pytest.approx(H200.prefill_token2_s * 9e6)
    work = [
        one(RatioPlanner(variance=on), forecast_of(20, 4000.0, isl_std=3000.0), cluster_of(4, 4)).inputs["prefill_work"]
        for on in (0, 1)
    ]
    assert work[0] < work[1]


@settings(max_examples=200, deadline=None)
@given(
    rate=st.floats(0.1, 400), more=st.floats(1.0, 3.0), isl=st.floats(1, 20_000), osl=st.floats(1, 2000),
    prefill=st.integers(1, 20), decode=st.integers(1, 20), local=st.booleans(),
    profile=st.sampled_from(sorted(PROFILES)),
)  # fmt: skip
def test_attainment_and_headroom_never_grow_with_load(
    rate: float, more: float, isl: float, osl: float, prefill: int, decode: int, local: bool, profile: str
) -> None:
    engine = PROFILES[profile]
    prompts = prompts_of(engine, isl, isl**2, 2000.0)
    decoder = Decoder(engine, SLO.tpot_s, isl + osl / 2)
    found = [
        Splits(engine, SLO, Demand(r * prompts.batched_s, r * osl, isl + osl / 2, prompts), decoder, local)
        .judged(prefill, decode) for r in (rate, rate * more)
    ]  # fmt: skip
    assert found[1].attainment <= found[0].attainment + 1e-9
    assert found[1].headroom <= found[0].headroom + 1e-9
    assert 0 <= found[1].attainment <= 1


def test_the_bound_is_what_memory_places_or_the_step_allow() -> None:
    assert Decoder(H200, 0.08, 1000.0).binding == "places"
    assert Decoder(H200, 0.08, 20_000.0).binding == "kv_memory"
    steep = replace(H200, decode_context_s=1e-6)
    tight = Decoder(steep, 0.08, 1000.0)
    assert tight.binding == "decode_step" and tight.step_s(tight.bound) <= 0.072 < tight.step_s(tight.bound + 1)


# --- which split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "pool"), [(PROMPTS, "prefill"), (ANSWERS, "decode")])
def test_a_step_change_of_the_load_is_followed_in_the_next_round(load: dict[str, float], pool: str) -> None:
    forecasts = [forecast_of(60, start_s=10.0 * n) for n in range(3)]
    forecasts += [forecast_of(100, start_s=30.0, **load)]
    plans, cluster, _ = rounds(RatioPlanner(), forecasts, cluster_of(4, 4))
    assert [bool(plan.roles) for plan in plans] == [False, False, False, True]
    assert plans[-1].reason == f"grow_{pool}" and set(plans[-1].roles.values()) == {pool}
    assert split_of(cluster)[pool == "decode"] > 4


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("local", [0, 1])
@pytest.mark.parametrize(("rate", "most"), [(20.0, 0), (60.0, 1), (90.0, 1), (110.0, 6)])
def test_constant_load_with_noise_brings_no_flip_flop(seed: int, local: int, rate: float, most: int) -> None:
    """Turns in 200 forecasts; 110 requests/s are more than there are workers for."""
    forecasts = [
        forecast_of(one, 2000.0, 200.0, start_s=10.0 * n) for n, one in enumerate(noisy(rate, 0.08, 200, seed))
    ]
    plans, _, _ = rounds(RatioPlanner(local=local), forecasts, cluster_of(4, 4))
    first = [n for n, plan in enumerate(plans) if plan.roles]
    pools = [next(iter(plans[n].roles.values())) for n in first]
    turns = sum(a != b for a, b in pairwise(pools))
    assert turns <= most, [(n, plans[n].reason, plans[n].alternatives[:2]) for n in first]


def test_without_a_lack_two_forecasts_must_agree() -> None:
    planner, cluster = RatioPlanner(local=0), cluster_of(6, 2)
    forecasts = [forecast_of(43, osl=400.0, start_s=10.0 * n) for n in range(3)]
    plans, _, _ = rounds(planner, forecasts, cluster)
    assert plans[0].alternatives[1].attainment > 0.99
    assert [plan.reason for plan in plans[:2]] == ["awaiting_confirmation", "rebalance_decode"]
    # The same forecast looked at again is no second opinion.
    state = planner.initial()
    for now_s in (0.0, 0.5, 1.0, 1.5):
        state, plan = planner.plan(state, forecasts[0], cluster, SLO, now_s)
        assert plan.reason == "awaiting_confirmation"


def test_a_pool_that_has_grown_does_not_shrink_at_once() -> None:
    planner = RatioPlanner(local=0)
    cluster, state = cluster_of(4, 4), planner.initial()
    state, plan = planner.plan(state, forecast_of(100, **ANSWERS), cluster, SLO, 0.0)
    cluster = after(cluster, plan)
    assert plan.reason == "grow_decode"
    turned = forecast_of(60, start_s=0.0, **PROMPTS)
    state, plan = planner.plan(state, turned, cluster, SLO, 1.0)
    assert plan.reason == "settling" and not plan.roles
    state, plan = planner.plan(state, turned, cluster, SLO, 5.0)
    assert plan.reason == "cooldown" and not plan.roles
    flooded = replace(cluster, waiting_prefill_tokens=2_000_000)
    assert planner.plan(state, turned, flooded, SLO, 5.0)[1].reason == "cooldown", "not even for a flood"
    assert planner.plan(state, turned, flooded, SLO, 10.5)[1].reason == "emergency_prefill"
    assert planner.plan(state, turned, cluster, SLO, 10.0)[1].reason == "grow_prefill"


def test_prompts_that_wait_pull_workers_before_any_forecast_says_so() -> None:
    calm = forecast_of(40)
    assert not one(RatioPlanner(local=0), calm, cluster_of(2, 6, decoding=5)).roles
    plan = one(RatioPlanner(local=0), calm, cluster_of(2, 6, decoding=5, waiting_tokens=1_000_000))
    assert plan.reason == "emergency_prefill" and len(plan.roles) >= 2


def test_the_time_decode_workers_have_left_serves_prompts_so_fewer_change() -> None:
    forecast = forecast_of(60, **PROMPTS)
    moved = [len(one(RatioPlanner(local=local), forecast, cluster_of(3, 5)).roles) for local in (0, 1)]
    assert moved[0] > moved[1]


# --- who ------------------------------------------------------------------------------------------------------------


def test_those_with_the_least_work_change_and_pinned_or_silent_ones_never_do() -> None:
    workers = [worker("a", "prefill", pinned=True, running=1), worker("b", "decode", pinned=True)]
    workers += [worker("c", "decode", serving=False)]
    workers += [worker(f"d{n}", "decode", context_tokens=1000 * (6 - n), decoding=6 - n) for n in range(6)]
    plan = one(RatioPlanner(local=0), forecast_of(30, **PROMPTS), ClusterView(tuple(workers)))
    assert plan.reason == "grow_prefill" and 1 < len(plan.roles) < 6
    assert sorted(plan.roles) == [f"d{n}" for n in range(6 - len(plan.roles), 6)]
    assert {alternative.prefill for alternative in plan.alternatives} <= set(range(1, 8))


@settings(max_examples=150, deadline=None)
@given(
    prefill=st.integers(0, 6), decode=st.integers(0, 6), pinned=st.integers(0, 12), rate=st.floats(0, 500),
    isl=st.floats(1, 20_000), osl=st.floats(0, 2000), waiting=st.integers(0, 5_000_000), unplaced=st.integers(0, 500),
    blind=st.booleans(),
)  # fmt: skip
def test_any_plan_keeps_the_workers_a_worker_in_each_pool_and_says_why(
    prefill: int,
    decode: int,
    pinned: int,
    rate: float,
    isl: float,
    osl: float,
    waiting: int,
    unplaced: int,
    blind: bool,
) -> None:
    view = cluster_of(prefill, decode, decoding=3, waiting_tokens=waiting, unplaced=unplaced)
    cluster = replace(view, workers=tuple(replace(w, pinned=n < pinned) for n, w in enumerate(view.workers)))
    forecast = None if blind else forecast_of(rate, isl, osl)
    plan = one(RatioPlanner(), forecast, cluster)
    assert plan == one(RatioPlanner(), forecast, cluster)
    held = {w.worker_id for w in cluster.workers if w.pinned}
    assert plan.reason and not held & plan.roles.keys()
    assert len(set(plan.roles.values())) <= 1
    pools = split_of(after(cluster, plan))
    assert sum(pools) == prefill + decode
    assert min(pools) >= min(1, prefill, decode)
    assert plan.roles or plan.reason.split("_")[0] not in ("grow", "emergency", "rebalance")


def test_a_thousand_workers_are_planned_for_together() -> None:
    plan = one(RatioPlanner(local=0), forecast_of(100 * 125, **ANSWERS), cluster_of(500, 500))
    assert plan.reason == "grow_decode" and len(plan.roles) > 100


# --- what it needs --------------------------------------------------------------------------------------------------


def test_a_round_that_cannot_decide_says_why_and_what_it_needs() -> None:
    planner, busy = RatioPlanner(), cluster_of(2, 2, decoding=5)
    pinned = replace(busy, workers=tuple(replace(w, pinned=True) for w in busy.workers))
    unknown = ForecastView(10.0, nan, nan, nan)
    cases = [
        (None, busy, 0.0, "no_forecast"),
        (forecast_of(10), busy, 100.0, "forecast_stale"),
        (unknown, busy, 0.0, "forecast_unknown"),
        (forecast_of(10), cluster_of(1, 0), 0.0, "too_few_workers"),
        (forecast_of(10), cluster_of(1, 1), 0.0, "no_choice"),
        (forecast_of(10), pinned, 0.0, "no_choice"),
        (forecast_of(0), cluster_of(2, 2), 0.0, "no_demand"),
    ]
    for forecast, cluster, now_s, reason in cases:
        plan = one(planner, forecast, cluster, now_s)
        assert (plan.reason, bool(plan.needs), dict(plan.roles)) == (reason, True, {})
    assert one(RatioPlanner(forecast=0), forecast_of(100, **ANSWERS), busy).reason == "forecast_off"


@pytest.mark.parametrize("forecast", [None, forecast_of(1.0, start_s=-1000.0)])
def test_without_a_forecast_queues_decide(forecast: ForecastView | None) -> None:
    planner = RatioPlanner(local=0)
    plan = one(planner, forecast, cluster_of(2, 6, decoding=20, waiting_tokens=2_000_000))
    assert plan.reason == "emergency_prefill" and plan.roles and plan.needs
    plan = one(planner, forecast, cluster_of(6, 2, decoding=250, unplaced=500))
    assert plan.reason == "emergency_decode" and plan.roles


def test_the_limit_that_was_asked_for_is_not_taken_for_the_length_of_answers() -> None:
    """Until an answer has ended only `max_tokens` is known; to believe it would make everybody decode."""
    forecast = forecast_of(40, osl=3000.0)
    assert one(RatioPlanner(), forecast, cluster_of(4, 4)).reason == "grow_decode"
    limits = {**forecast.series, "osl_tokens_mean": SeriesView(3000.0, reason="osl_from_limit")}
    assert not one(RatioPlanner(), replace(forecast, series=limits), cluster_of(4, 4)).roles


def test_steps_longer_than_the_profile_says_are_learnt() -> None:
    planner, state = RatioPlanner(Ground(H200)), State()
    slow = cluster_of(4, 4, decoding=20, step_s=3 * 0.0057)
    for turn in range(60):
        state, plan = planner.plan(state, forecast_of(10, start_s=10.0 * turn), slow, SLO, 10.0 * turn)
    assert state.correction == pytest.approx(2.0, abs=0.05)
    assert plan.inputs["correction"] == state.correction
    quick, _ = planner.plan(State(), forecast_of(10), cluster_of(4, 4, decoding=20, step_s=0.0058), SLO, 0.0)
    assert quick.correction == 1.0


def test_a_plan_tells_its_numbers_and_what_else_was_considered() -> None:
    plan = one(RatioPlanner(), forecast_of(100, **ANSWERS), cluster_of(4, 4))
    chosen, now = plan.alternatives[:2]
    assert (now.prefill, now.decode) == (4, 4) and chosen.attainment > now.attainment
    assert plan.binding in ("places", "minimum") and plan.inputs["requests_per_s"] == 100
    assert plan.inputs["worth_best"] > plan.inputs["worth_now"]


def test_the_quantile_that_is_asked_for_is_between_those_that_are_known() -> None:
    view = SeriesView(10.0, ((0.1, 5.0), (0.5, 10.0), (0.9, 18.0)))
    assert [view.at(level) for level in (0.0, 0.1, 0.3, 0.7, 0.9, 0.99)] == [5.0, 5.0, 7.5, 14.0, 18.0, 18.0]
    assert SeriesView(3.0).at(0.9) == 3.0
