"""DistServe's parts: whole prompts in a batch, decode that pulls, and a placement that follows the load."""

from dataclasses import replace

import pytest

from dopd.cluster import ClusterView, WorkerView
from dopd.perf.model import step_s
from dopd.perf.profile import named
from dopd.policy.base import RequestView, SegmentPlan, StepView, WaitingView
from dopd.policy.distserve import Pull, WholePrompts
from dopd.policy.gate import admissible
from dopd.slo import Slo
from dopd_loadgen.compare import placement
from dopd_loadgen.model import Planned

H200 = named("h200-llama-3.1-8b-fp8-tp1")


def step(*tokens: int, prefills: int = 0, decodes: int = 0) -> StepView:
    waiting = [WaitingView(f"j{number}", count, 0.0) for number, count in enumerate(tokens)]
    return StepView(decodes, 0, prefills, False, waiting, 8192, 256)


def admitted(view: StepView, batch_tokens: int = 4096) -> list[str]:
    _, limit = WholePrompts(batch_tokens).limit(None, view)
    return admissible(view, limit)


def test_a_batch_takes_whole_prompts_in_order_up_to_its_tokens() -> None:
    assert admitted(step(2000, 2000, 96, 1)) == ["j0", "j1", "j2"]
    assert admitted(step(2000, 3000, 96)) == ["j0"], "a shorter one does not overtake"


def test_a_prompt_that_is_longer_than_a_batch_runs_alone() -> None:
    assert admitted(step(9000, 10)) == ["j0"]


def test_the_next_batch_waits_until_the_last_prompt_is_done() -> None:
    assert admitted(step(10, prefills=1)) == []
    assert admitted(step(10, decodes=200)) == ["j0"]


# --- decode pulls -----------------------------------------------------------------------------------------------------


def worker(**more: int) -> WorkerView:
    given = WorkerView("d1", "d1", "decode", 0, True, credit=9, running=3, kv_total_tokens=20_000, kv_domain="a")
    return replace(given, **more)


def pulled(decode: WorkerView, count: int = 1, isl: int = 600) -> int:
    """How many of these prefilled requests it accepts."""
    views = [RequestView(f"r{n}", isl, 1, 50.0, 0.0, 50, Slo(), 0, float(n), kv_tokens=isl - 1) for n in range(count)]
    _, dispatches, _ = Pull().step(None, views, ClusterView((decode,), {"a": 10**6}), 0.0)
    return len(dispatches)


def test_a_decode_worker_accepts_while_little_waits_and_memory_is_free() -> None:
    assert pulled(worker()) == 1
    assert pulled(worker(kv_used_tokens=19_500)) == 0, "the prompt's blocks are not free"
    assert pulled(worker(waiting=2)) == 0, "1200 tokens wait, 5 % are 1000"
    assert pulled(worker(), count=4) == 2, "what a round gives waits, too"


def test_an_idle_decode_worker_accepts_a_prompt_of_any_length() -> None:
    assert pulled(worker(running=0), isl=15_000) == 1


def test_a_prompt_is_placed_without_its_decode() -> None:
    prefill = replace(worker(), worker_id="p1", role="prefill")
    request = RequestView("r", 100, 100, 9.0, 0.0, 9, Slo(), 0, 0.0)
    _, dispatches, _ = Pull().step(None, [request], ClusterView((prefill, worker()), {"a": 10**6}), 0.0)
    assert dispatches[0].placements[0].segments == (SegmentPlan("p1", 100), SegmentPlan(None))


# --- placement --------------------------------------------------------------------------------------------------------


def load(isl: int, osl: int) -> list[Planned]:
    return [Planned(number, number / 10, isl + number % 7, osl + number % 5) for number in range(50)]


def placed(isl: int, osl: int, workers: int = 8) -> placement.Placed:
    return placement.place(H200, Slo(), workers, load(isl, osl))


def test_long_prompts_get_prefill_workers_and_long_answers_get_decode_workers() -> None:
    code, talk, thought = placed(6000, 20), placed(1200, 200), placed(200, 3000)
    assert code.prefill > talk.prefill > thought.prefill
    assert (code.decode, thought.prefill) == (1, 1)
    for found in (code, talk, thought):
        assert found.prefill + found.decode == 8 and "P" in found.note


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_both_phases_have_a_worker_however_few_there_are(workers: int) -> None:
    for found in (placed(6000, 2, workers), placed(10, 3000, workers)):
        assert min(found.prefill, found.decode) >= 1 and found.prefill + found.decode == workers


def test_one_prompt_alone_waits_as_long_as_the_profile_says() -> None:
    sample = placement.Sample([1000, 500], [1, 1], [0.0, 1e6])
    waits_s = placement.prefill_waits_s(
        replace(H200, transfer_fixed_s=0.0, transfer_bytes_per_s=1e18), sample, 1.0, 8192
    )
    assert waits_s == pytest.approx([step_s(H200, n, n * n, 0, 0) for n in (1000, 500)], rel=1e-6)


def test_one_answer_alone_decodes_as_fast_as_the_profile_says() -> None:
    sample = placement.Sample([1000], [101], [0.0])
    (tpot_s,) = placement.decode_tpots_s(H200, sample, 1.0)
    assert tpot_s == pytest.approx(sum(step_s(H200, 0, 0, 1, 1000 + k) for k in range(1, 101)) / 100)


def test_requests_that_do_not_fit_into_memory_wait_for_one_that_ends() -> None:
    small = replace(H200, kv_total_tokens=2500)
    sample = placement.Sample([1000, 1000, 1000], [101, 101, 101], [0.0, 0.0, 0.0])
    first_s, second_s, third_s = placement.decode_tpots_s(small, sample, 1.0)
    assert first_s == second_s and third_s > 1.9 * first_s


def test_an_instance_sustains_less_than_its_capacity() -> None:
    sample = placement.sample(load(1200, 200))
    rate = placement.prefill_rps(H200, Slo(), sample, 8192)
    full_s = sum(H200.prefill_token_s * isl for isl in sample.isl) / len(sample.isl)
    assert 0.3 / full_s < rate < 1 / full_s


def test_where_no_rate_meets_a_target_capacity_decides() -> None:
    hopeless = placement.place(H200, Slo(ttft_s=1e-3, tpot_s=1e-3), 8, load(1200, 200))
    assert 1 <= hopeless.prefill <= 7 and hopeless.prefill_rps > 0 and hopeless.decode_rps > 0
