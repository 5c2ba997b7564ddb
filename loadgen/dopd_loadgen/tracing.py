"""A run as a trace: what each request did in the client, the gateway and the workers, to look at.

Consumes a `Run` whose records have timelines; produces a Chrome trace (https://ui.perfetto.dev opens it) and OTLP/JSON
for OpenTelemetry's viewers. Times of the client and of the served system are put side by side as they are: each is
right on its own clock, nothing is shifted.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dopd_loadgen.breakdown import PhaseStats, breakdown
from dopd_loadgen.model import Record, Run
from dopd_loadgen.report.files import whole_file
from dopd_loadgen.trace_ids import client_span_of, trace_of

__all__ = ["PhaseStats", "breakdown", "write_chrome_trace", "write_otlp_json"]

CLIENT = "client"
GATEWAY_PHASES = ("queued", "sent")
_json = msgspec.json.encode


# --- Chrome's trace format ------------------------------------------------------------------------------------------


class _Slice(NamedTuple):
    name: str
    start_s: float
    end_s: float


class _Stay(NamedTuple):
    """Slices of one request in one process that touch or contain each other: they share a track."""

    where: str
    slices: tuple[_Slice, ...]
    record: Record

    @property
    def start_s(self) -> float:
        return self.slices[0].start_s

    @property
    def end_s(self) -> float:
        return max(each.end_s for each in self.slices)


def write_chrome_trace(run: Run, path: Path) -> None:
    """A process per `where`, in it as many tracks as there were requests at once, arrows along each request.

    Times are microseconds since the run's start. Raises LoadError when the file cannot be written.
    """
    stays = sorted(_stays(run), key=lambda stay: (stay.start_s, stay.record.index, stay.where))
    places = [CLIENT, *sorted({stay.where for stay in stays} - {CLIENT})]
    pids = {where: number for number, where in enumerate(places, 1)}
    with whole_file(path) as stream:
        about = {"label": run.label, "seed": run.seed, "started_unix_s": run.started_unix_s}
        stream.write(b'{"displayTimeUnit":"ms","otherData":' + _json(about) + b',"traceEvents":[\n')
        stream.write(b",\n".join(_json(_process(where, pid)) for where, pid in pids.items()))
        for stay, lane in _laid_out(stays):
            for event in _events(stay, pids[stay.where], lane):
                stream.write(b",\n" + _json(event))
        stream.write(b"\n]}\n")


def _stays(run: Run) -> Iterator[_Stay]:
    for record in run.records:
        if record.sent_s is not None:
            yield _Stay(CLIENT, tuple(_client_slices(record)), record)
            yield from _server_stays(record, run.started_unix_s)


def _client_slices(record: Record) -> Iterator[_Slice]:
    """The whole, and inside of it: sent late, waiting for the first token, receiving the rest."""
    sent_s = record.sent_s or 0.0
    ended_s = max(sent_s, record.ended_s or 0.0, *record.times_s[-1:])
    first_s = record.times_s[0] if record.times_s else ended_s
    marks = [record.intended_s, sent_s, first_s, ended_s]
    yield _Slice("request", min(marks), ended_s)
    for name, start_s, end_s in zip(("send_late", "waiting", "receiving"), marks, marks[1:], strict=False):
        if end_s > start_s:
            yield _Slice(name, start_s, end_s)


def _server_stays(record: Record, zero_s: float) -> Iterator[_Stay]:
    """Phases that follow each other in one process; the one beside the others has a track of its own."""
    slices: list[_Slice] = []
    where = ""
    for phase in record.timeline:
        one = _Slice(phase.name, phase.start_s - zero_s, max(phase.start_s, phase.end_s) - zero_s)
        if phase.name == "first_token_sent":
            yield _Stay(phase.where, (one,), record)
            continue
        if slices and (phase.where != where or one.start_s < slices[-1].end_s):
            yield _Stay(where, tuple(slices), record)
            slices = []
        where = phase.where
        slices.append(one)
    if slices:
        yield _Stay(where, tuple(slices), record)


def _laid_out(stays: Iterable[_Stay]) -> Iterator[tuple[_Stay, int]]:
    """Each stay, in the order of their starts, with the lowest track of its process that is free for all of it."""
    busy: dict[str, list[tuple[float, int]]] = {}
    free: dict[str, list[int]] = {}
    for stay in stays:
        taken, left = busy.setdefault(stay.where, []), free.setdefault(stay.where, [])
        while taken and taken[0][0] <= stay.start_s:
            heapq.heappush(left, heapq.heappop(taken)[1])
        lane = heapq.heappop(left) if left else len(taken) + 1
        heapq.heappush(taken, (stay.end_s, lane))
        yield stay, lane


def _process(where: str, pid: int) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": where}}


def _events(stay: _Stay, pid: int, lane: int) -> Iterator[dict[str, Any]]:
    record = stay.record
    args = {"index": record.index, "request_id": record.request_id, "trace_id": record.trace_id}
    here = {"cat": "request", "pid": pid, "tid": lane}
    for name, start_s, end_s in stay.slices:
        ts, end = _micro(start_s), _micro(end_s)
        yield {"ph": "X", "name": name, "ts": ts, "dur": round(end - ts, 3), **here, "args": args}
    # An arrow from the client's send along all stays.
    begins = stay.where == CLIENT
    at_s = max(record.sent_s or 0.0, stay.start_s) if begins else stay.start_s
    yield {"ph": "s" if begins else "t", "name": "request", "id": record.index, "ts": _micro(at_s), **here}


def _micro(at_s: float) -> float:
    return round(at_s * 1e6, 3)


# --- OTLP/JSON ------------------------------------------------------------------------------------------------------

_INTERNAL, _SERVER, _CLIENT, _ERROR = 1, 2, 3, 2


def write_otlp_json(run: Run, path: Path) -> None:
    """`resourceSpans` as in OTLP/JSON: per request a client span, in it the gateway's, in that one per phase.

    Raises LoadError when the file cannot be written.
    """
    spans: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in run.records:
        if record.sent_s is not None:
            for service, where, span in _otlp_spans(run, record):
                spans.setdefault((service, where), []).append(span)
    with whole_file(path) as stream:
        stream.write(_otlp(spans))


def client_spans(run: Run, at_once: int) -> Iterator[bytes]:
    """The client's spans alone, as OTLP/JSON of so many requests each: the system's own come from the system."""
    sent = [record for record in run.records if record.sent_s is not None]
    for start in range(0, len(sent), at_once):
        yield _otlp({("loadgen", CLIENT): [_client_span(run, record) for record in sent[start : start + at_once]]})


def _otlp(spans: Mapping[tuple[str, str], list[dict[str, Any]]]) -> bytes:
    groups = [{"resource": _resource(*who), "scopeSpans": [_scope(found)]} for who, found in sorted(spans.items())]
    return _json({"resourceSpans": groups})


def _id(of: str) -> str:
    return blake2b(of.encode(), digest_size=8).hexdigest()


def _trace_of(run: Run, record: Record) -> str:
    return record.trace_id or trace_of(run.seed, record.index)[0]  # a virtual run has no trace


def _client_span(run: Run, record: Record) -> dict[str, Any]:
    trace_id, zero_s = _trace_of(run, record), run.started_unix_s
    whole = next(_client_slices(record))
    about: dict[str, str | int] = {
        "dopd.request_id": record.request_id,
        "dopd.isl_tokens": record.isl_tokens,
        "dopd.osl_tokens": record.osl_tokens,
    }
    start_s, end_s = zero_s + whole.start_s, zero_s + whole.end_s
    span = _span(trace_id, client_span_of(trace_id), "", whole.name, _CLIENT, start_s, end_s)
    span["attributes"] = [_attribute(key, value) for key, value in about.items()]
    marks = {"sent": record.sent_s, "first token": record.times_s[0] if record.times_s else None}
    span["events"] = [{"name": n, "timeUnixNano": _nano(zero_s + at)} for n, at in marks.items() if at is not None]
    if record.failure:
        span["status"] = {"code": _ERROR, "message": f"{record.failure}: {record.detail}".removesuffix(": ")}
    return span


def _otlp_spans(run: Run, record: Record) -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "loadgen", CLIENT, _client_span(run, record)
    if not record.timeline:
        return
    trace_id = _trace_of(run, record)
    own, server = client_span_of(trace_id), _id(f"{trace_id}/server")
    first, last_s = record.timeline[0], max(phase.end_s for phase in record.timeline)
    yield "gateway", first.where, _span(trace_id, server, own, "completion", _SERVER, first.start_s, last_s)
    for number, phase in enumerate(record.timeline):
        service = "gateway" if phase.name in GATEWAY_PHASES else "worker"
        part = _span(trace_id, _id(f"{trace_id}/{number}"), server, phase.name, _INTERNAL, phase.start_s, phase.end_s)
        yield service, phase.where, part


def _span(
    trace_id: str, span_id: str, parent: str, name: str, kind: int, start_s: float, end_s: float
) -> dict[str, Any]:
    span: dict[str, Any] = {
        "traceId": trace_id,
        "spanId": span_id,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": _nano(start_s),
        "endTimeUnixNano": _nano(max(start_s, end_s)),
    }
    return {**span, "parentSpanId": parent} if parent else span


def _nano(at_s: float) -> str:
    return str(round(at_s * 1e9))


def _attribute(key: str, value: str | int) -> dict[str, Any]:
    # 64-bit integers are strings in OTLP/JSON.
    return {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}


def _resource(service: str, where: str) -> dict[str, Any]:
    return {"attributes": [_attribute("service.name", service), _attribute("service.instance.id", where)]}


def _scope(spans: list[dict[str, Any]]) -> dict[str, Any]:
    return {"scope": {"name": "dopd_loadgen"}, "spans": spans}
