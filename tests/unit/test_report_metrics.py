"""Every figure of a run, against runs that can be worked out on paper."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_loadgen.model import Run
from dopd_loadgen.report.metrics import percentile_name, round_width_s, spread, summarise, window
from dopd_loadgen.report.summary import Attainment, Settings
from tests.load_runs import answer, failed, random_run, run_of


def test_one_good_request_gives_the_figures_of_the_definitions() -> None:
    run = run_of([answer(0, 2.0, [2.5, 2.6, 2.8])], gpus=2, slo_tpot_s=0.2)
    summary = summarise(run, Settings(percentiles=(50, 99)))
    figures = summary.figures
    assert (figures.requests, figures.completed, figures.good) == (1, 1, 1)
    assert figures.latencies["ttft"].percentiles_s == {"50": pytest.approx(0.5), "99": pytest.approx(0.5)}
    assert figures.latencies["tpot"].mean_s == pytest.approx(0.15)
    assert (figures.latencies["itl"].n, figures.latencies["itl"].mean_s) == (2, pytest.approx(0.15))
    assert figures.latencies["e2el"].mean_s == pytest.approx(0.8)
    assert figures.goodput_rps == pytest.approx(0.1) and figures.goodput_tps == pytest.approx(0.3)
    assert summary.goodput_rps_per_gpu == pytest.approx(0.05)


def test_a_request_is_good_only_if_it_met_every_target() -> None:
    records = [
        answer(0, 1.0, [1.5, 1.55]),
        answer(1, 1.0, [2.5, 2.55]),  # TTFT 1.5
        answer(2, 1.0, [1.5, 1.8]),  # TPOT 0.3
        answer(3, 1.0, [2.5, 2.9]),
    ]
    attainment = summarise(run_of(records)).figures.attainment
    assert attainment == Attainment(joint=0.25, ttft=0.5, tpot=0.5, e2el=None)
    with_e2e = summarise(run_of(records, slo_e2e_s=0.6)).figures.attainment
    assert with_e2e == Attainment(joint=0.25, ttft=0.5, tpot=0.5, e2el=0.25)


def test_a_target_is_met_by_equality() -> None:
    assert summarise(run_of([answer(0, 0.0, [1.0, 1.1])], slo_tpot_s=1.1 - 1.0)).figures.good == 1


@pytest.mark.parametrize(
    "kind", ["rejected", "client_error", "server_error", "connection", "malformed", "truncated", "short", "timeout"]
)
def test_every_failure_is_a_miss_and_changes_no_latency(kind: str) -> None:
    good = answer(0, 1.0, [1.5, 1.55])
    alone = summarise(run_of([good])).figures
    both = summarise(run_of([good, failed(1, 2.0, kind)])).figures  # type: ignore[arg-type]  # all are failures
    assert both.latencies == alone.latencies
    assert both.attainment == Attainment(joint=0.5, ttft=0.5, tpot=0.5)
    assert both.failures == {kind: 1} and (both.requests, both.completed) == (2, 1)


def test_a_failed_request_that_was_fast_before_counts_for_no_latency() -> None:
    late = answer(0, 1.0, [1.1, 1.2], failure="timeout", osl_tokens=9)
    figures = summarise(run_of([late])).figures
    assert figures.latencies["ttft"].n == 0 and figures.attainment == Attainment(0.0, 0.0, 0.0)
    assert figures.missing_tokens == 7


def test_an_answer_without_all_forced_tokens_is_short_whatever_it_says() -> None:
    figures = summarise(run_of([answer(0, 1.0, [1.1, 1.2], osl_tokens=3)])).figures
    assert figures.failures == {"short": 1} and figures.good == 0 and figures.missing_tokens == 1


def test_an_answer_that_was_free_to_stop_is_complete() -> None:
    figures = summarise(run_of([answer(0, 1.0, [1.1, 1.2], osl_tokens=300, forced=False)])).figures
    assert figures.good == 1 and figures.missing_tokens == 0 and not figures.failures


def test_one_token_meets_any_time_per_token_and_is_no_sample_of_it() -> None:
    figures = summarise(run_of([answer(0, 1.0, [1.5])], slo_tpot_s=1e-9)).figures
    assert figures.good == 1 and figures.latencies["tpot"].n == figures.latencies["itl"].n == 0


def test_a_batch_of_tokens_is_one_gap_but_counts_all_its_tokens() -> None:
    batched = answer(0, 1.0, [1.5, 1.9], counts=[1, 4], osl_tokens=5)
    figures = summarise(run_of([batched])).figures
    assert figures.latencies["itl"].mean_s == pytest.approx(0.4)
    assert figures.latencies["tpot"].mean_s == pytest.approx(0.1) and figures.output_tokens == 5


def test_latency_counts_from_the_intended_send_and_beside_it_from_the_actual_one() -> None:
    figures = summarise(run_of([answer(0, 1.0, [2.5, 2.55], sent_s=2.0)])).figures
    assert figures.latencies["ttft"].mean_s == pytest.approx(1.5)
    assert figures.latencies_from_send["ttft"].mean_s == pytest.approx(0.5)
    assert figures.latencies_from_send["e2el"].mean_s == pytest.approx(0.55)
    assert (figures.attainment.joint, figures.attainment_from_send.joint) == (0.0, 1.0)
    assert (figures.goodput_rps, figures.goodput_from_send_rps) == (0.0, pytest.approx(0.1))


def test_warm_up_and_cool_down_are_cut_off_by_the_intended_send() -> None:
    records = [answer(i, at_s, [at_s + 0.1]) for i, at_s in enumerate((0.0, 1.99, 2.0, 5.0, 7.0, 7.01))]
    summary = summarise(run_of(records, warmup_s=2.0, cooldown_s=3.0))
    assert summary.figures.requests == 3 and summary.outside == 3
    assert summary.figures.offered_rps == pytest.approx(3 / 5)


def test_an_empty_window_has_no_share_and_no_latency_instead_of_zero() -> None:
    summary = summarise(run_of([answer(0, 1.0, [1.5])], warmup_s=4.0))
    assert summary.figures.attainment == Attainment() and summary.figures.latencies["ttft"].mean_s is None
    assert summary.figures.goodput_rps == 0 and summary.lag is None
    assert summarise(run_of([])).figures.requests == 0


def test_a_warm_up_longer_than_the_schedule_leaves_an_empty_window() -> None:
    assert window(run_of([], warmup_s=8.0, cooldown_s=8.0)) == (8.0, 8.0)


def test_when_all_failed_attainment_is_zero() -> None:
    figures = summarise(run_of([failed(0, 1.0, "rejected"), failed(1, 2.0, "timeout")])).figures
    assert figures.attainment.joint == 0.0 and figures.completed == 0 and figures.missing_tokens == 8


def test_requests_that_a_broken_off_run_never_sent_are_left_out_and_counted() -> None:
    records = [answer(0, 1.0, [1.5]), failed(1, 4.0, "timeout"), failed(2, 6.0, "unsent"), failed(3, 9.0, "unsent")]
    summary = summarise(run_of(records, interrupted=True))
    assert (summary.figures.requests, summary.unsent, summary.outside) == (2, 2, 0)
    assert summary.figures.attainment.joint == 0.5
    assert (summary.figures.end_s, summary.figures.offered_rps) == (4.0, pytest.approx(0.5))
    assert sum(one.requests for one in summary.bins) == 2


def test_a_request_that_left_and_has_no_end_is_a_miss() -> None:
    figures = summarise(run_of([failed(0, 1.0, "unsent", sent_s=1.0)])).figures
    assert figures.failures == {"timeout": 1} and figures.attainment.joint == 0.0


def test_a_burst_is_rated_until_its_last_request_was_settled() -> None:
    records = [answer(i, 0.0, [1.0, 4.0], ended_s=4.0) for i in range(8)]
    figures = summarise(run_of(records, span_s=0.0, slo_tpot_s=9.0)).figures
    assert (figures.rated_s, figures.goodput_rps, figures.output_tps) == (4.0, 2.0, 4.0)


def test_gpu_seconds_that_were_held_win_over_the_number_of_gpus() -> None:
    records = [answer(0, 1.0, [1.5])]
    assert summarise(run_of(records)).goodput_rps_per_gpu is None
    assert summarise(run_of(records, gpus=4)).gpus == 4.0
    held = summarise(run_of(records, gpus=4, gpu_seconds=20.0))
    assert held.gpus == 2.0 and held.goodput_rps_per_gpu == pytest.approx(0.1 / 2)


def test_a_late_client_is_told_apart_from_a_capped_one() -> None:
    late = [answer(i, float(i), [i + 0.6], sent_s=i + 0.5) for i in range(9)]
    open_loop, closed = summarise(run_of(late)), summarise(run_of(late, max_concurrency=2))
    assert open_loop.degraded and open_loop.lag is not None and open_loop.lag.p50_s == pytest.approx(0.5)
    assert closed.closed_loop and not closed.degraded


def test_phases_are_rated_over_their_own_stretch() -> None:
    early = [answer(i, float(i), [i + 0.5], phase="a") for i in range(5)]
    late = [failed(5 + i, 6.0 + i, "rejected", phase="b") for i in range(3)]
    phases = summarise(run_of(early + late)).phases
    assert list(phases) == ["a", "b"]
    assert phases["a"].offered_rps == pytest.approx(5 / 4) and phases["a"].attainment.joint == 1.0
    assert phases["b"].offered_rps == pytest.approx(3 / 2) and phases["b"].attainment.joint == 0.0
    assert summarise(run_of([answer(0, 1.0, [1.5])])).phases == {}


def test_bins_cover_the_whole_schedule_and_none_is_a_sliver() -> None:
    records = [answer(0, 0.0, [0.5]), failed(1, 4.9, "rejected"), answer(2, 10.0, [10.5])]
    bins = summarise(run_of(records, warmup_s=2.0), Settings(bin_s=3.0)).bins
    assert [(one.start_s, one.end_s, one.requests, one.good) for one in bins] == [
        (0.0, 3.0, 1, 1),
        (3.0, 6.0, 1, 0),
        (6.0, 10.0, 1, 1),
    ]


def test_only_the_chosen_latencies_are_made() -> None:
    figures = summarise(random_run(1), Settings(metrics=("tpot",), percentiles=(99.9,))).figures
    assert list(figures.latencies) == ["tpot"] and not figures.latencies_from_send
    assert list(figures.latencies["tpot"].percentiles_s) == ["99.9"]


def test_percentiles_lie_between_neighbours() -> None:
    made = spread([4.0, 1.0, 3.0, 2.0], (50, 90))
    assert made.percentiles_s == {"50": pytest.approx(2.5), "90": pytest.approx(3.7)}
    assert made.std_s == pytest.approx(math.sqrt(1.25))
    assert [percentile_name(p) for p in (50.0, 99.9)] == ["50", "99.9"]


@given(st.floats(1e-6, 1e6))
def test_a_round_width_is_not_below_and_not_far_above(least_s: float) -> None:
    assert least_s * 0.999 <= round_width_s(least_s) <= least_s * 2.6


@given(st.integers(0, 2**20))
def test_the_joint_share_is_never_above_a_single_one_and_goodput_never_above_throughput(seed: int) -> None:
    summary = summarise(random_run(seed))
    for figures in (summary.figures, *summary.phases.values()):
        share = figures.attainment
        if share.joint is not None:
            assert share.ttft is not None and share.tpot is not None and share.e2el is not None
            assert share.joint <= min(share.ttft, share.tpot, share.e2el)
            assert share.joint == figures.good / figures.requests
        assert figures.goodput_rps <= figures.completed_rps <= figures.offered_rps
        assert figures.goodput_tps <= figures.output_tps
        assert figures.completed + sum(figures.failures.values()) == figures.requests
    assert sum(part.requests for part in summary.phases.values()) == summary.figures.requests
    assert sum(one.requests for one in summary.bins) == summary.figures.requests + summary.outside


@given(st.integers(0, 2**20), st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_nothing(seed: int, rng: object) -> None:
    run = random_run(seed)
    before = summarise(run)
    rng.shuffle(run.records)  # type: ignore[attr-defined]  # hypothesis types it as its own Random
    assert summarise(run) == before


@given(st.integers(0, 2**20))
def test_one_more_failure_never_raises_attainment(seed: int) -> None:
    run = random_run(seed)
    before = summarise(run).figures.attainment.joint
    run.records.append(failed(999, 5.0, "rejected"))
    after = summarise(run).figures.attainment.joint
    assert after is not None and (before is None or after <= before)


def test_a_run_is_not_changed_by_looking_at_it() -> None:
    run, same = random_run(3), random_run(3)
    summarise(run)
    assert isinstance(run, Run) and run == same
