"""The keys of `vllm bench serve`'s result, with vLLM's meaning. Consumes a `Run`; produces a dict for JSON. Pure.

That meaning is not ours: the whole run counts, latencies start at the actual send, an answer that is too short is a
success, and rates are per second up to the last answer. Source: vllm/benchmarks/serve.py, `calculate_metrics` and
`main_async`.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from dopd_loadgen.goodput import NO_TARGET_S
from dopd_loadgen.model import Record, Run
from dopd_loadgen.report.metrics import failure_of, percentile_name, spread, unsent
from dopd_loadgen.report.summary import Settings

BACKENDS = {"http": "openai", "nats": "dopd-nats", "virtual": "dopd-virtual"}
DETAILED = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")
"""What vLLM leaves out without `--save-detailed`."""


def bench_keys(run: Run, settings: Settings | None = None, detailed: bool = False) -> dict[str, Any]:
    """vLLM's keys, the lists last; latencies in ms, lists in seconds. `generated_texts` are empty: no text is kept."""
    settings = settings or Settings()
    sent = [r for r in run.records if not unsent(r)]
    done = [r for r in sent if _success(r)]
    keys = _head(run) | _totals(run, done, len(sent) - len(done))
    keys |= {
        "max_output_tokens_per_s": _peak_tokens(done),
        "max_concurrent_requests": _peak_requests(done),
        "rtfx": 0.0,
    }
    samples = {
        "ttft": [_ttft_s(r) for r in done],
        "tpot": [(_latency_s(r) - _ttft_s(r)) / (n - 1) for r in done if (n := sum(r.counts)) > 1],
        "itl": [gap for r in done for gap in _gaps_s(r)],
        "e2el": [_latency_s(r) for r in done],
    }
    for name in settings.metrics:
        keys |= _statistics(name, samples[name], settings.percentiles)
    return {key: value for key, value in (keys | _lists(sent)).items() if detailed or key not in DETAILED}


def _head(run: Run) -> dict[str, Any]:
    made = run.workload | run.settings
    backend = str(made.get("backend", BACKENDS[run.api]))
    rate = made.get("request_rate", "inf")
    return {
        "date": datetime.fromtimestamp(run.started_unix_s).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": run.label,
        "model_id": run.model,
        "tokenizer_id": made.get("tokenizer") or run.model,
        "num_prompts": len(run.records),
        "request_rate": "inf" if isinstance(rate, float) and math.isinf(rate) else rate,
        "burstiness": made.get("burstiness", 1.0),
        "max_concurrency": run.max_concurrency,
    }


def _totals(run: Run, done: Sequence[Record], failed: int) -> dict[str, Any]:
    inputs, outputs = sum(_prompt_tokens(r) for r in done), sum(sum(r.counts) for r in done)
    targets = (run.slo_ttft_s < NO_TARGET_S, run.slo_tpot_s < NO_TARGET_S, run.slo_e2e_s is not None)

    def rate(count: int) -> float:
        return count / run.ended_s if run.ended_s > 0 else 0.0

    return {
        "duration": run.ended_s,
        "completed": len(done),
        "failed": failed,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": rate(len(done)),
        "request_goodput": rate(sum(_good(r, run) for r in done)) if any(targets) else None,
        "output_throughput": rate(outputs),
        "total_token_throughput": rate(inputs + outputs),
    }


def _lists(sent: Sequence[Record]) -> dict[str, list[Any]]:
    success = [_success(r) for r in sent]
    return {
        "input_lens": [_prompt_tokens(r) for r in sent],
        "output_lens": [sum(r.counts) if ok else 0 for r, ok in zip(sent, success, strict=True)],
        "ttfts": [_ttft_s(r) for r in sent],
        "itls": [_gaps_s(r) for r in sent],
        "latencies": [_latency_s(r) if ok else 0.0 for r, ok in zip(sent, success, strict=True)],
        "start_times": [_start_s(r) for r in sent],
        "queue_times": [_start_s(r) - r.intended_s for r in sent],
        "generated_texts": [""] * len(sent),
        "errors": ["" if ok else _error(r) for r, ok in zip(sent, success, strict=True)],
    }


def _success(record: Record) -> bool:
    """In vLLM an answer that has begun and ended is a success, however short."""
    return bool(record.times_s) and failure_of(record) in ("", "short")


def _good(record: Record, run: Run) -> bool:
    """vLLM's: no look at missing tokens, latencies from the send."""
    n = sum(record.counts)
    tpot_s = (_latency_s(record) - _ttft_s(record)) / (n - 1) if n > 1 else 0.0
    e2e_s = math.inf if run.slo_e2e_s is None else run.slo_e2e_s
    return _ttft_s(record) <= run.slo_ttft_s and tpot_s <= run.slo_tpot_s and _latency_s(record) <= e2e_s


def _start_s(record: Record) -> float:
    return record.intended_s if record.sent_s is None else record.sent_s


def _ttft_s(record: Record) -> float:
    return record.times_s[0] - _start_s(record) if record.times_s else 0.0


def _latency_s(record: Record) -> float:
    return record.times_s[-1] - _start_s(record)


def _gaps_s(record: Record) -> list[float]:
    gaps: list[float] = np.diff(record.times_s).tolist()
    return gaps


def _prompt_tokens(record: Record) -> int:
    return record.prompt_tokens or record.isl_tokens


def _error(record: Record) -> str:
    kind = failure_of(record) or "no tokens"
    return f"{kind}: {record.detail}" if record.detail else kind


def _peak_tokens(done: Sequence[Record]) -> float:
    """Batches of tokens in the fullest second, counted from the first send: for vLLM a chunk is a token."""
    if not done:
        return 0.0
    zero_s = min(_start_s(r) for r in done)
    seconds = np.concatenate([np.asarray(r.times_s) - zero_s for r in done]).astype(np.int64)
    return float(np.bincount(seconds).max())


def _peak_requests(done: Sequence[Record]) -> int:
    """Requests that were under way at some time of the same second, in the fullest one."""
    if not done:
        return 0
    zero_s = min(_start_s(r) for r in done)
    first = np.array([int(_start_s(r) - zero_s) for r in done])
    last = np.array([int(r.times_s[-1] - zero_s) for r in done])
    changes = np.zeros(last.max() + 2, np.int64)
    np.add.at(changes, first, 1)
    np.add.at(changes, last + 1, -1)
    return int(changes.cumsum().max())


def _statistics(name: str, samples_s: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles in ms; all 0 without a sample, as in vLLM."""
    made = spread(samples_s or [0.0], (50, *percentiles))
    keys = {f"mean_{name}_ms": made.mean_s or 0.0, f"median_{name}_ms": made.percentiles_s["50"]}
    keys[f"std_{name}_ms"] = made.std_s or 0.0
    keys |= {f"p{percentile_name(p)}_{name}_ms": made.percentiles_s[percentile_name(p)] for p in percentiles}
    return {key: value * 1e3 for key, value in keys.items()}
