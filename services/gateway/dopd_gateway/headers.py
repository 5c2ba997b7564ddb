"""What a request says beside its body. Pure.

Consumes: HTTP or NATS headers. Produces: the request with what they say, the key that pays for it, and the headers of
the answer. A body's field goes before a header.
"""

import re
from collections.abc import Mapping
from math import isfinite

import msgspec

from dopd.errors import BadRequest
from dopd_proto.asked import Chat, Generate

_MILLISECONDS = {
    "x-request-timeout-ms": "timeout_s",
    "x-slo-ttft-ms": "slo_ttft_s",
    "x-slo-tpot-ms": "slo_tpot_s",
}
REQUEST_ID = "x-request-id"
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_ID = re.compile(r"[\x21-\x7e]{1,128}")


def with_headers(asked: Generate | Chat, headers: Mapping[str, str]) -> Generate | Chat:
    """`x-request-timeout-ms`, `x-slo-ttft-ms`, `x-slo-tpot-ms`, `x-priority`, `x-dopd-timeline: 1`, `traceparent`."""
    said: dict[str, object] = {}
    for header, field in _MILLISECONDS.items():
        text = headers.get(header)
        if text is not None and getattr(asked, field) is None:
            said[field] = _milliseconds(header, text) / 1000
    priority, traceparent = headers.get("x-priority"), headers.get("traceparent", "")
    if priority is not None and not asked.priority:
        said["priority"] = _whole(priority)
    if headers.get("x-dopd-timeline") == "1":
        said["timeline"] = True
    if traceparent and not asked.traceparent:
        said["traceparent"] = traceparent
    return msgspec.structs.replace(asked, **said) if said else asked


def key_of(headers: Mapping[str, str]) -> str:
    """The API key of `Authorization: Bearer …`; whoever sends none shares the key ""."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def answer_headers(request_id: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The caller's request id or ours, and the id of the trace that it is in."""
    theirs = headers.get(REQUEST_ID, "")
    trace_id = trace_id_of(headers.get("traceparent", ""))
    known = {REQUEST_ID: theirs if _ID.fullmatch(theirs) else request_id}
    return known | ({"x-trace-id": trace_id} if trace_id else {})


def trace_id_of(traceparent: str) -> str:
    """The trace that a W3C `traceparent` names, "" where it names none."""
    found = _TRACE.fullmatch(traceparent.strip())
    return found[1] if found else ""


def _milliseconds(header: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0):
        raise BadRequest(f"the header {header} is {text[:100]!r}, but must be a number above 0", header)
    return value


def _whole(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text, re.ASCII):
        raise BadRequest(f"the header x-priority is {text[:100]!r}, but must be a whole number", "x-priority")
    return int(text)
