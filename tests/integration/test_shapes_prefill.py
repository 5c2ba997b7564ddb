"""One prefill worker is DistServe's queue (`algorithms.md` 5.1), and several are one queue before several servers.

What a TTFT has beyond theory's is accounted for: a message to the worker (`LATENCY_S`), and putting the prompt's KV
into the store, which is part of the service time. The formula of a two-way pipeline has no counterpart: an engine of
ours makes one step at a time, and pipeline parallelism is not modelled.
"""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from dopd.config import WorkerConfig
from dopd.perf.model import step_s, transfer_s
from dopd_loadgen.model import Planned
from tests.shapes_rig import H200, LATENCY_S, ONE_BY_ONE, Served, poisson, scaled, serve, service_s
from tests.shapes_theory import (
    bulk_times_s,
    dealt_waits_s,
    error_of_mean,
    md1_ttft_s,
    pooled_waits_s,
    tensor_parallel_ttft_s,
    waits_s,
)

ISL = 256
D = service_s(H200, ISL)
COUNT = 3000
LOADS = (0.3, 0.6, 0.8)
MANY = WorkerConfig(max_prefills=256)
"""Credit for more prompts than a step can take: with less, it is the credit that makes the batches."""


@cache
def served(load: float, osl: int = 1) -> tuple[list[Planned], Served]:
    plans = poisson(COUNT, load / D, ISL, osl)
    return plans, serve(plans, policy=ONE_BY_ONE)


def at_worker_s(plans: list[Planned]) -> list[float]:
    return [planned.at_s + LATENCY_S for planned in plans]


# --- one server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
def test_every_single_prompt_waits_as_long_as_lindleys_recursion_says(load: float) -> None:
    plans, run = served(load)
    expected = LATENCY_S + D + waits_s([planned.at_s for planned in plans], D)
    assert np.array(run.ttfts_s) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("load", LOADS)
def test_the_mean_ttft_is_that_of_md1_within_three_errors_of_a_run_so_long(load: float) -> None:
    """The error, sigma of the mean of 3000, is 1 % of the TTFT at load 0.3, 3 % at 0.6 and 8.5 % at 0.8."""
    error_s = error_of_mean(load / D, D, COUNT)
    theory_s = LATENCY_S + md1_ttft_s(load / D, D)
    assert error_s < 0.09 * theory_s
    assert np.mean(served(load)[1].ttfts_s) == pytest.approx(theory_s, abs=3 * error_s)


@pytest.mark.parametrize("load", LOADS)
def test_without_the_chance_of_its_arrivals_the_mean_ttft_is_that_of_md1_within_one_per_cent(load: float) -> None:
    """The run's own arrivals, waited for by Lindley, are the control variate: millions of them go to the formula."""
    gaps = np.random.Generator(np.random.PCG64(11)).exponential(D / load, 4_000_000)
    plans, run = served(load)
    luck_s = waits_s([p.at_s for p in plans], D).mean() - waits_s(np.cumsum(gaps), D).mean()
    assert np.mean(run.ttfts_s) - luck_s == pytest.approx(LATENCY_S + md1_ttft_s(load / D, D), rel=0.01)


@pytest.mark.parametrize(("load", "speed_up"), [(0.6, 1.9), (0.8, 1.5), (1.2, 1.9)])
def test_a_worker_k_times_as_fast_has_the_ttft_of_the_tensor_parallel_formula(load: float, speed_up: float) -> None:
    plans = poisson(1500, load / D, ISL)
    run = serve(plans, scaled(H200, 1 / speed_up), ONE_BY_ONE)
    assert np.array(run.ttfts_s) == pytest.approx(LATENCY_S + D / speed_up + waits_s(
        [planned.at_s for planned in plans], D / speed_up), abs=1e-7)  # fmt: skip
    theory_s = LATENCY_S + tensor_parallel_ttft_s(load / D, D, speed_up)
    assert np.mean(run.ttfts_s) == pytest.approx(theory_s, abs=3 * error_of_mean(load / D, D / speed_up, 1500))
    assert load > 1 or theory_s < md1_ttft_s(load / D, D)


def test_handing_over_to_a_decode_worker_costs_a_prefill_worker_nothing() -> None:
    plans = poisson(400, 0.6 / D, ISL, osl=8)
    run = serve(plans, policy=ONE_BY_ONE, decode=2)
    expected = LATENCY_S + D + waits_s([planned.at_s for planned in plans], D)
    assert np.array(run.ttfts_s) == pytest.approx(expected, abs=1e-7)


# --- batches --------------------------------------------------------------------------------------------------------


def batch_s(prompts: int) -> float:
    return step_s(H200, prompts * ISL, prompts * ISL**2, 0, 0) + transfer_s(H200, prompts * ISL)


@pytest.mark.parametrize("load", [0.3, 0.8, 1.5, 3.0])
def test_prompts_that_share_a_step_are_served_as_a_bulk_queue_and_wait_less_than_one_by_one(load: float) -> None:
    """A step's fixed cost is paid once for all in it, so the worker bears loads that one by one nobody could."""
    plans = poisson(1200, load / D, ISL)
    run = serve(plans, worker=MANY)
    most = H200.max_step_tokens // ISL
    expected = LATENCY_S + bulk_times_s(at_worker_s(plans), most, batch_s)
    assert np.array(run.ttfts_s) == pytest.approx(expected, abs=1e-7)
    if load < 1:
        one_by_one = LATENCY_S + D + waits_s([planned.at_s for planned in plans], D)
        assert np.mean(run.ttfts_s) < 0.98 * np.mean(one_by_one)
    else:
        assert np.mean(run.ttfts_s) < 6 * D


@pytest.mark.parametrize("isl", [256, 1000, 4096])
def test_a_full_prefill_worker_gives_a_step_of_prompts_per_step_time(isl: int) -> None:
    """Of prompts that fill steps exactly or not: a cut prompt goes on in the next step, which costs nothing."""
    tokens = H200.max_step_tokens
    count = 12 * tokens // isl
    run = serve([Planned(index, 0.0, isl, 1) for index in range(count)], worker=MANY)
    ends = sorted(record.times_s[0] for record in run.records)
    first, last = count // 4, count - 1
    per_step = tokens / isl
    ideal = per_step / (step_s(H200, tokens, round(per_step * isl * isl), 0, 0) + transfer_s(H200, tokens))
    steady = (last - first) / (ends[last] - ends[first])
    assert steady == pytest.approx(ideal, rel=0.05)


def test_the_credit_that_workers_grant_by_default_keeps_a_prefill_worker_busy() -> None:
    """Credit for 16 prompts, 8 of them in a step: the next 8 are there when the step ends, after a start."""
    isl, per_step = 1024, H200.max_step_tokens // 1024
    run = serve([Planned(index, 0.0, isl, 1) for index in range(30 * per_step)])
    ends = Counter(round(record.times_s[0], 9) for record in run.records)
    expected = [step_s(H200, n * isl, n * isl**2, 0, 0) + transfer_s(H200, n * isl) for n in ends.values()]
    assert np.diff(list(ends)) == pytest.approx(expected[1:])
    assert set(list(ends.values())[5:-1]) == {per_step}


def test_a_full_prefill_worker_without_batches_gives_a_prompt_per_service_time() -> None:
    run = serve([Planned(index, 0.0, ISL, 1) for index in range(400)], policy=ONE_BY_ONE)
    ends = sorted(record.times_s[0] for record in run.records)
    assert (ends[-1] - ends[0]) / (len(ends) - 1) == pytest.approx(D, rel=1e-6)


# --- several servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.6, 0.9])
@pytest.mark.parametrize("workers", [2, 4])
def test_several_prefill_workers_wait_hardly_longer_than_one_queue_before_them_all(workers: int, load: float) -> None:
    """Work is bound when it is placed, not when a worker is free, and workers say only now and then how far they are.

    That may cost some of what pooling gives, never more than a fifth of the way to dealing the prompts out by chance.
    """
    plans = poisson(1000, workers * load / D, ISL)
    mean_s = np.mean(serve(plans, policy=ONE_BY_ONE, prefill=workers).ttfts_s) - D - LATENCY_S
    times = [planned.at_s for planned in plans]
    pooled_s = pooled_waits_s(times, D, workers).mean()
    dealt_s = dealt_waits_s(times, D, workers).mean()
    assert pooled_s - 1e-7 <= mean_s < pooled_s + (dealt_s - pooled_s) / 5
