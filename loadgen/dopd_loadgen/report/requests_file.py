"""`requests.jsonl`: one line per request, shaped as AIPerf's `profile_export.jsonl`. Consumes and produces records.

What AIPerf has keeps AIPerf's meaning (its `inter_token_latency` is one figure per request: our TPOT); the record
itself stands in full under `dopd`, so that a run can be read back without loss.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dopd.errors import LoadError
from dopd.slo import tpot_s
from dopd_loadgen.model import Record, Run
from dopd_loadgen.report.files import whole_file
from dopd_loadgen.report.metrics import failure_of, missing_tokens, window


class _Line(msgspec.Struct):
    dopd: Record


def write_requests(run: Run, path: Path) -> None:
    """All records of the run by their index. Raises LoadError."""
    encoder = msgspec.json.Encoder()
    measured = window(run)
    with whole_file(path) as stream:
        for record in sorted(run.records, key=lambda r: r.index):
            stream.write(encoder.encode(line(record, run.started_unix_s, measured)) + b"\n")


def read_requests(path: Path) -> list[Record]:
    """The records of a file that `write_requests` made. Raises LoadError with file, line and reason."""
    try:
        return [_record(path, number, text) for number, text in _lines(path)]
    except OSError as error:
        raise LoadError(str(path), f"cannot be read: {error.strerror or error}") from error


def line(record: Record, started_unix_s: float, measured: tuple[float, float]) -> dict[str, Any]:
    """One request: times as nanoseconds since the epoch, metrics as value and unit. `measured` is the window."""

    def ns(time_s: float | None) -> int | None:
        # Added as integers: a float of seconds since the epoch is good to 200 ns only.
        return None if time_s is None else round(started_unix_s * 1e9) + round(time_s * 1e9)

    metadata = {
        "session_num": record.index,
        "x_request_id": record.request_id,
        "trace_id": record.trace_id,
        "benchmark_phase": _benchmark_phase(record.intended_s, *measured),
        "scheduled_ns": ns(record.intended_s),
        "request_start_ns": ns(record.sent_s),
        "first_token_ns": ns(record.times_s[0] if record.times_s else None),
        "request_end_ns": ns(record.ended_s),
        "was_cancelled": record.failure == "timeout",
        "worker_path": worker_path(record),
    }
    kind = failure_of(record)
    error = {"code": record.status or None, "type": kind, "message": record.detail} if kind else None
    return {"metadata": metadata, "metrics": _metrics(record), "error": error, "dopd": record}


def worker_path(record: Record) -> list[str]:
    """The processes that a request went through, in order, each stay once."""
    stays = [phase.where for phase in record.timeline]
    return [where for before, where in zip([None, *stays], stays, strict=False) if where != before]


def _metrics(record: Record) -> dict[str, Any]:
    tokens = sum(record.counts)
    metrics = {
        "input_sequence_length": _value(record.prompt_tokens or record.isl_tokens, "tokens"),
        "output_sequence_length": _value(tokens, "tokens"),
        "missing_tokens": _value(missing_tokens(record), "tokens"),
    }
    if not record.times_s:
        return metrics
    first_s, last_s = record.times_s[0], record.times_s[-1]
    if record.sent_s is not None:
        metrics["time_to_first_token"] = _value((first_s - record.sent_s) * 1e3, "ms")
        metrics["request_latency"] = _value((last_s - record.sent_s) * 1e3, "ms")
        metrics["schedule_lag"] = _value((record.sent_s - record.intended_s) * 1e3, "ms")
    metrics["time_to_first_token_from_schedule"] = _value((first_s - record.intended_s) * 1e3, "ms")
    metrics["request_latency_from_schedule"] = _value((last_s - record.intended_s) * 1e3, "ms")
    if tokens > 1:
        metrics["inter_token_latency"] = _value(tpot_s(first_s, last_s, tokens) * 1e3, "ms")
    return metrics


def _value(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}


def _benchmark_phase(intended_s: float, start_s: float, end_s: float) -> str:
    if intended_s < start_s:
        return "warmup"
    return "profiling" if intended_s <= end_s else "cooldown"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        for number, text in enumerate(stream, 1):
            if text.strip():
                yield number, text


def _record(path: Path, number: int, text: bytes) -> Record:
    try:
        record = msgspec.json.decode(text, type=_Line).dopd
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{path}, line {number}", f"is no request of a run: {error}") from error
    if len(record.times_s) != len(record.counts):
        raise LoadError(f"{path}, line {number}", f"has {len(record.times_s)} times_s and {len(record.counts)} counts")
    return record
