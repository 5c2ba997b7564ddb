"""Every metric that a service exports: name, kind, labels, who has it, what it means.

Consumes nothing; produces `METRICS`, by which `metrics.py` exports, and the table in docs/observability.md. Names end
in their unit, counters in `_total`. Values of labels come from a small set: no ids of requests, no names of models.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One name. `buckets` are a histogram's upper bounds, in its unit."""

    name: str
    kind: Kind
    who: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TTFT_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0)
TPOT_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
CHANGE_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)

METRICS: tuple[Metric, ...] = (
    Metric("dopd_build_info", "gauge", "all", "1; which service this is, of which version", ("service", "version")),
    Metric("dopd_bus_connected", "gauge", "all", "1 while the broker is within reach"),
    Metric("dopd_bus_faults_total", "counter", "all",
           "faults of the bus, by kind; with slow_consumer and outbox_overflow messages were dropped", ("kind",)),
    Metric("dopd_ttft_seconds", "histogram", "gateway",
           "arrival at the gateway to the first token there", (), TTFT_S),
    Metric("dopd_tpot_seconds", "histogram", "gateway",
           "first token to last at the gateway, divided by the tokens after the first; of completed requests", (),
           TPOT_S),
    Metric("dopd_request_duration_seconds", "histogram", "gateway",
           "arrival at the gateway to the end, however it ended", (), DURATION_S),
    Metric("dopd_slo_seconds", "gauge", "gateway",
           "targets of requests that bring none of their own: ttft, tpot", ("target",)),
    Metric("dopd_arrivals_total", "counter", "gateway", "requests that were taken into the queue"),
    Metric("dopd_requests_refused_total", "counter", "gateway", "requests that found the queue full"),
    Metric("dopd_requests_total", "counter", "gateway",
           "requests that ended: stop, length, cancelled (the client has gone) or failed", ("outcome",)),
    Metric("dopd_requests_within_slo_total", "counter", "gateway", "completed requests that met both of their targets"),
    Metric("dopd_slo_missed_total", "counter", "gateway",
           "completed requests that missed a target: ttft, tpot; of both, twice", ("target",)),
    Metric("dopd_request_failures_total", "counter", "gateway",
           "requests that failed after they were queued, by the error's code", ("code",)),
    Metric("dopd_error_answers_total", "counter", "gateway",
           "errors instead of an answer, or in the middle of one over NATS, by API (http, nats) and code",
           ("api", "code")),
    Metric("dopd_http_connections", "gauge", "gateway", "connections of clients to the public port"),
    Metric("dopd_http_held_bytes", "gauge", "gateway", "what has come of requests that are not complete"),
    Metric("dopd_http_refused_total", "counter", "gateway",
           "connections ended by a limit, by the code of their last answer, or none", ("code",)),
    Metric("dopd_tokens_total", "counter", "gateway",
           "tokens of requests: prompt (on arrival) and output (as they come in)", ("kind",)),
    Metric("dopd_placements_total", "counter", "gateway", "placements of requests on workers"),
    Metric("dopd_attempts_lost_total", "counter", "gateway", "placements that failed on their workers"),
    Metric("dopd_kv_missed_tokens_total", "counter", "gateway",
           "prompt tokens whose KV should have been in the store and was not; of requests that ended"),
    Metric("dopd_waiting_requests", "gauge", "gateway", "requests in the queue"),
    Metric("dopd_waiting_prefill_tokens", "gauge", "gateway", "their tokens to be computed"),
    Metric("dopd_running_requests", "gauge", "gateway", "requests placed on workers"),
    Metric("dopd_workers", "gauge", "gateway", "workers that are heard, by role and phase", ("role", "phase")),
    Metric("dopd_credit_requests", "gauge", "gateway",
           "requests that the gateway may still place, by role of the workers", ("role",)),
    Metric("dopd_worker_role", "gauge", "worker", "1 for the present role", ("role",)),
    Metric("dopd_worker_phase", "gauge", "worker", "1 for the present phase", ("phase",)),
    Metric("dopd_worker_held_requests", "gauge", "worker", "segments in hand"),
    Metric("dopd_worker_running_requests", "gauge", "worker", "requests in the engine's steps"),
    Metric("dopd_worker_decoding_requests", "gauge", "worker", "those of them that decode"),
    Metric("dopd_worker_waiting_requests", "gauge", "worker", "requests in the engine's queue"),
    Metric("dopd_worker_queued_prefill_tokens", "gauge", "worker", "input not computed yet"),
    Metric("dopd_worker_context_tokens", "gauge", "worker", "live context of decoding requests"),
    Metric("dopd_worker_granted_requests", "gauge", "worker", "credit that gateways have not used yet"),
    Metric("dopd_worker_segments_total", "counter", "worker", "segments that ended, by how", ("end",)),
    Metric("dopd_worker_refusals_total", "counter", "worker", "work that was not taken, by reason", ("reason",)),
    Metric("dopd_worker_input_tokens_total", "counter", "worker",
           "input by where its KV came from: local (the engine's own cache), store, far (another domain), or computed",
           ("kv",)),
    Metric("dopd_worker_output_tokens_total", "counter", "worker", "tokens made"),
    Metric("dopd_worker_role_changes_total", "counter", "worker", "changes of role that were begun"),
    Metric("dopd_engine_step_seconds", "summary", "worker",
           "sum: time with work in hand; count: steps of the engine; their quotient is the mean step"),
    Metric("dopd_kv_used_tokens", "gauge", "worker", "KV memory of the engine in use, in whole blocks"),
    Metric("dopd_kv_total_tokens", "gauge", "worker", "KV memory of the engine"),
    Metric("dopd_kv_store_tokens", "gauge", "worker", "size of the KV store between workers, 0 while not known"),
    Metric("dopd_kv_store_up", "gauge", "worker", "1 while the KV store answers"),
    Metric("dopd_kv_misses_total", "counter", "worker", "segments that found less KV in the store than was promised"),
    Metric("dopd_kv_store_used_tokens", "gauge", "KV store", "emulated store: what it holds"),
    Metric("dopd_kv_store_looked_up_tokens_total", "counter", "KV store", "emulated store: tokens asked for"),
    Metric("dopd_kv_store_found_tokens_total", "counter", "KV store", "emulated store: those of them that it had"),
    Metric("dopd_kv_store_dropped_tokens_total", "counter", "KV store",
           "emulated store: tokens that had to go, least recently used first"),
    Metric("dopd_planner_leading", "gauge", "planner", "1 while this planner commands"),
    Metric("dopd_planner_workers", "gauge", "planner", "the split: live workers by role", ("role",)),
    Metric("dopd_planner_pinned_workers", "gauge", "planner", "workers whose role a person has pinned"),
    Metric("dopd_planner_wanted_workers", "gauge", "planner",
           "the split that the last plan chose; decode with mixed ones", ("role",)),
    Metric("dopd_planner_predicted_attainment_ratio", "gauge", "planner",
           "of each split that the last plan considered: share of requests expected within both targets", ("split",)),
    Metric("dopd_planner_predicted_headroom_ratio", "gauge", "planner",
           "of each such split: how much of its limit is left, below 0: exceeded", ("split",)),
    Metric("dopd_planner_decisions_total", "counter", "planner",
           "recorded decisions: who wanted it (plan, repair, pin, person), and the policy's reason", ("why", "reason")),
    Metric("dopd_role_changes_total", "counter", "planner",
           "what came of role changes: accepting, then drained; or worker_lost, superseded, timed_out", ("outcome",)),
    Metric("dopd_role_change_accepting_seconds", "histogram", "planner",
           "command to the first work of the new role", (), CHANGE_S),
    Metric("dopd_role_change_drained_seconds", "histogram", "planner",
           "command to the end of the last work of the old role", (), CHANGE_S),
    Metric("dopd_arrivals_per_second", "gauge", "forecaster", "requests per second in the last complete bin"),
    Metric("dopd_forecast_requests_per_second", "gauge", "forecaster",
           "expected mean rate from now to the horizon", ("horizon_s",)),
    Metric("dopd_forecast_quantile_requests_per_second", "gauge", "forecaster",
           "quantiles of the same, at the levels 0.1, 0.5, 0.9 and 0.95", ("horizon_s", "level")),
    Metric("dopd_forecast_busy_workers", "gauge", "forecaster",
           "prefill: workers that the expected prompts keep busy; decode: the same for answers, without the fixed cost "
           "of a step", ("role", "horizon_s")),
    Metric("dopd_forecast_timestamp_seconds", "gauge", "forecaster",
           "when the last forecast begins, in seconds since the epoch", ("horizon_s",)),
    Metric("dopd_forecast_error_ratio", "gauge", "forecaster",
           "recent sum of absolute errors over the sum of what came", ("series", "horizon_s")),
    Metric("dopd_forecast_windows_refused_total", "counter", "forecaster",
           "windows not counted, by reason", ("reason",)),
)  # fmt: skip

Sample = tuple[str, tuple[str, ...], float | tuple[float, float]]
"""Name, values of its labels, value; of a summary (count, sum)."""
Source = Callable[[], Iterable[Sample]]

BY_NAME = {metric.name: metric for metric in METRICS}


def markdown(metrics: Iterable[Metric] = METRICS) -> str:
    """The table of docs/observability.md."""
    lines = ["| metric | kind | of | labels | meaning |", "|---|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.who} | {labels} | {metric.meaning} |")
    return "\n".join(lines)
