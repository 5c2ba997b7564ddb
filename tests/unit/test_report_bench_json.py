"""The keys of `vllm bench serve` and what they mean there."""

import contextlib
import importlib.util
import io
from typing import Any

import pytest

from dopd_loadgen.goodput import NO_TARGET_S
from dopd_loadgen.model import Record, Run
from dopd_loadgen.report.bench_json import DETAILED, bench_keys
from dopd_loadgen.report.metrics import failure_of
from dopd_loadgen.report.summary import Settings
from tests.load_runs import answer, failed, random_run, run_of

# What vllm 0.32.0 writes for a run that generates text, without the keys of its options.
WRITTEN = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "latencies"),
    *("queue_times", "max_output_tokens_per_s", "max_concurrent_requests", "rtfx"),
    *(f"{what}_{name}_ms" for what in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
}


def test_every_key_that_vllm_writes_is_there() -> None:
    keys = bench_keys(random_run(1))
    assert set(keys) >= WRITTEN and not set(keys) & set(DETAILED)
    assert set(bench_keys(random_run(1), detailed=True)) >= WRITTEN | set(DETAILED)


def test_latencies_are_milliseconds_from_the_actual_send() -> None:
    keys = bench_keys(run_of([answer(0, 1.0, [2.5, 2.7], sent_s=2.0)]), Settings(percentiles=(50, 99.9)))
    assert keys["mean_ttft_ms"] == keys["p99.9_ttft_ms"] == keys["median_ttft_ms"] == pytest.approx(500)
    assert keys["mean_itl_ms"] == keys["mean_tpot_ms"] == pytest.approx(200)
    assert keys["mean_e2el_ms"] == pytest.approx(700) and keys["std_e2el_ms"] == 0


def test_rates_are_per_second_of_the_whole_run_and_warm_up_counts() -> None:
    records = [answer(i, float(i), [i + 0.5, i + 0.55], prompt_tokens=7) for i in range(6)]
    keys = bench_keys(run_of(records, warmup_s=4.0, ended_s=12.0))
    assert keys["completed"] == 6 and keys["request_throughput"] == keys["request_goodput"] == pytest.approx(0.5)
    assert keys["output_throughput"] == pytest.approx(1.0)
    assert keys["total_token_throughput"] == pytest.approx((6 * 7 + 12) / 12)


def test_a_short_answer_is_a_success_and_a_rejected_request_is_not() -> None:
    short = answer(0, 0.0, [0.5], osl_tokens=3, failure="short")
    keys = bench_keys(run_of([short, failed(1, 0.0, "rejected", detail="queue full")]), detailed=True)
    assert (keys["completed"], keys["failed"]) == (1, 1)
    assert keys["errors"] == ["", "rejected: queue full"] and keys["output_lens"] == [1, 0]


def test_requests_that_were_never_sent_are_in_no_list() -> None:
    keys = bench_keys(run_of([answer(0, 0.0, [0.5]), failed(1, 5.0, "unsent")]), detailed=True)
    assert keys["num_prompts"] == 2 and keys["failed"] == 0
    assert all(len(keys[name]) == 1 for name in DETAILED)


def test_goodput_is_absent_without_a_target() -> None:
    none = run_of([answer(0, 0.0, [0.5])], slo_ttft_s=NO_TARGET_S, slo_tpot_s=NO_TARGET_S)
    assert bench_keys(none)["request_goodput"] is None


def test_without_a_success_figures_are_zero_as_in_vllm() -> None:
    keys = bench_keys(run_of([failed(0, 0.0, "rejected")]))
    assert keys["mean_ttft_ms"] == keys["max_output_tokens_per_s"] == keys["max_concurrent_requests"] == 0


def test_peaks_count_whole_seconds_from_the_first_send() -> None:
    records = [answer(0, 0.5, [1.0, 1.4, 1.6]), answer(1, 1.0, [1.4, 3.0])]
    keys = bench_keys(run_of(records))
    assert keys["max_output_tokens_per_s"] == 3  # at 0.5, 0.9 and 0.9 s
    assert keys["max_concurrent_requests"] == 2


def test_the_settings_name_rate_and_tokenizer() -> None:
    run = run_of([], workload={"request_rate": float("inf")}, settings={"tokenizer": "tok", "burstiness": 0.5})
    keys = bench_keys(run)
    assert (keys["request_rate"], keys["tokenizer_id"], keys["burstiness"]) == ("inf", "tok", 0.5)


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_figures_are_those_that_vllm_itself_makes_of_the_same_outputs() -> None:
    from vllm.benchmarks.serve import calculate_metrics

    run = random_run(5, n=80)
    targets = {"ttft": run.slo_ttft_s * 1e3, "tpot": run.slo_tpot_s * 1e3, "e2el": 2000.0}
    outputs = [_output(record) for record in run.records]
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, lengths = calculate_metrics([], outputs, run.ended_s, None, [50, 99], targets)
    ours = bench_keys(run, Settings(percentiles=(50, 99)), detailed=True)
    assert ours["output_lens"] == lengths
    assert ours["ttfts"] == pytest.approx([output.ttft for output in outputs])
    assert ours["latencies"] == pytest.approx([output.latency for output in outputs])
    for key, value in _figures(theirs).items():
        assert ours[key] == pytest.approx(value), key


def _output(record: Record) -> Any:
    """The record as vLLM's own client would have kept it."""
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput

    assert record.sent_s is not None
    output = RequestFuncOutput(prompt_len=record.isl_tokens, start_time=record.sent_s)
    output.success = bool(record.times_s) and failure_of(record) in ("", "short")
    if record.times_s:
        output.ttft = record.times_s[0] - record.sent_s
        output.itl = [b - a for a, b in zip(record.times_s, record.times_s[1:], strict=False)]
    if output.success:
        output.latency, output.output_tokens = record.times_s[-1] - record.sent_s, len(record.times_s)
    return output


def _figures(metrics: Any) -> dict[str, float]:
    names = ("completed", "failed", "request_throughput", "request_goodput", "output_throughput")
    found = {name: getattr(metrics, name) for name in names}
    found |= {"total_token_throughput": metrics.total_token_throughput, "total_input_tokens": metrics.total_input}
    found["max_output_tokens_per_s"] = metrics.max_output_tokens_per_s
    found["max_concurrent_requests"] = metrics.max_concurrent_requests
    for name in ("ttft", "tpot", "itl", "e2el"):
        found |= {f"{what}_{name}_ms": getattr(metrics, f"{what}_{name}_ms") for what in ("mean", "median", "std")}
        found |= {f"p{percentile}_{name}_ms": value for percentile, value in getattr(metrics, f"percentiles_{name}_ms")}
    return found


def test_a_run_of_nothing_but_unsent_requests_still_has_every_key() -> None:
    empty: Run = run_of([failed(0, 1.0, "unsent")], ended_s=0.0)
    assert set(bench_keys(empty)) >= WRITTEN
