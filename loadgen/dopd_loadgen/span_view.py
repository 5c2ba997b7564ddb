"""`dopd spans`: spans that were exported to files as one file for https://ui.perfetto.dev (or `chrome://tracing`).

Consumes OTLP/JSON, one batch per line, as `OTEL_EXPORTER_OTLP_ENDPOINT=file:FOLDER` and a collector's file exporter
write it; produces a Chrome trace: a process per service and instance, arrows from each span to its parts.
"""

import heapq
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dopd.errors import LoadError
from dopd_loadgen.report.files import write_whole

LEAST_US = 1.0
"""A slice that took no time would not be seen."""


@dataclass(slots=True)
class Shown:
    """A span. Times are microseconds since the epoch; `pid` and `tid` are its place in the picture."""

    where: str
    span: dict[str, Any]
    start_us: float
    end_us: float
    pid: int = 0
    tid: int = 0


def main(argv: Sequence[str]) -> int:
    """0 written, 2 for what cannot be read or written."""
    parser = ArgumentParser(prog="dopd spans", description="Make one file for ui.perfetto.dev of exported spans.")
    parser.add_argument("source", nargs="+", type=Path, metavar="PATH", help="files, or folders with *.jsonl")
    parser.add_argument("--with", dest="name", default="", metavar="NAME", help="only traces with such a span: command")
    parser.add_argument("--trace", default="", metavar="ID", help="only this trace, or those whose id begins so")
    parser.add_argument("-o", "--out", type=Path, default=Path("spans.json"), metavar="FILE", help="(spans.json)")
    args = parser.parse_args(argv)
    try:
        spans = chosen(read(args.source), args.name, args.trace)
        write_whole(args.out, msgspec.json.encode({"displayTimeUnit": "ms", "traceEvents": list(events(spans))}))
    except LoadError as error:
        print(f"dopd spans: {error}", file=sys.stderr)
        return 2
    print(f"{len(spans)} spans in {args.out}; open it at https://ui.perfetto.dev")
    return 0


def read(sources: Iterable[Path]) -> list[Shown]:
    """All spans of files and folders. Raises LoadError with the file and the line."""
    files = [file for one in sources for file in (sorted(one.glob("*.jsonl")) if one.is_dir() else [one])]
    found: list[Shown] = []
    for file in files:
        try:
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                found += _batch(f"{file}:{number}", line)
        except OSError as error:
            raise LoadError(str(file), f"cannot be read: {error.strerror or error}") from error
    if not found:
        raise LoadError(", ".join(str(one) for one in sources), "has no spans")
    return found


def _batch(where: str, line: bytes) -> list[Shown]:
    try:
        groups = msgspec.json.decode(line)["resourceSpans"]
        return [
            Shown(_place(group), span, int(span["startTimeUnixNano"]) / 1e3, int(span["endTimeUnixNano"]) / 1e3)
            for group in groups
            for scope in group["scopeSpans"]
            for span in scope["spans"]
        ]
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise LoadError(where, f"is no line of OTLP/JSON: {error!r}") from error


def _place(group: dict[str, Any]) -> str:
    said = {one["key"]: next(iter(one["value"].values())) for one in group["resource"]["attributes"]}
    return " ".join(str(said[key]) for key in ("service.name", "service.instance.id") if key in said)


def chosen(spans: Sequence[Shown], name: str = "", trace: str = "") -> list[Shown]:
    """Those of traces that have a span of this name, and whose id begins so; all without either."""
    found = {one.span["traceId"] for one in spans if not name or one.span["name"] == name}
    return [one for one in spans if one.span["traceId"] in found and one.span["traceId"].startswith(trace)]


def events(spans: Sequence[Shown]) -> Iterator[dict[str, Any]]:
    """Chrome's, in as many tracks per process as there are spans at once. Times count from the first span."""
    zero_us = min((one.start_us for one in spans), default=0.0)
    ordered = sorted(spans, key=lambda one: (one.start_us, one.where))
    pids = {where: number for number, where in enumerate(dict.fromkeys(one.where for one in ordered), 1)}
    for where, pid in pids.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": where}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    known = {one.span["spanId"]: one for one in ordered}
    for one in _laid_out(ordered):
        one.pid = pids[one.where]
        yield _slice(one, zero_us)
    for number, one in enumerate(ordered):
        if parent := known.get(one.span.get("parentSpanId", "")):
            yield from _arrow(number, parent, one, zero_us)


def _laid_out(ordered: Iterable[Shown]) -> Iterator[Shown]:
    """Each with the lowest track of its process that is free for all of it."""
    busy: dict[str, list[tuple[float, int]]] = {}
    free: dict[str, list[int]] = {}
    for one in ordered:
        taken, left = busy.setdefault(one.where, []), free.setdefault(one.where, [])
        while taken and taken[0][0] <= one.start_us:
            heapq.heappush(left, heapq.heappop(taken)[1])
        one.tid = heapq.heappop(left) if left else len(taken) + 1
        heapq.heappush(taken, (max(one.end_us, one.start_us + LEAST_US), one.tid))
        yield one


def _slice(one: Shown, zero_us: float) -> dict[str, Any]:
    about = {a["key"]: next(iter(a["value"].values())) for a in one.span.get("attributes", [])}
    about |= {"trace_id": one.span["traceId"]} | one.span.get("status", {})
    dur = max(LEAST_US, one.end_us - one.start_us)
    here = {"pid": one.pid, "tid": one.tid, "ts": round(one.start_us - zero_us, 3), "dur": round(dur, 3)}
    return {"ph": "X", "name": one.span["name"], "cat": "span", "args": about, **here}


def _arrow(number: int, parent: Shown, one: Shown, zero_us: float) -> Iterator[dict[str, Any]]:
    """From the parent, no later than its end, to the part."""
    leaves_us = min(one.start_us, max(parent.start_us, parent.end_us))
    for phase, end, at_us in (("s", parent, leaves_us), ("f", one, one.start_us)):
        yield {
            "ph": phase, "name": "part", "cat": "span", "id": number, "pid": end.pid, "tid": end.tid,
            "ts": round(at_us - zero_us, 3), **({"bp": "e"} if phase == "f" else {}),
        }  # fmt: skip
