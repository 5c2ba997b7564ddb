"""Finished spans as OTLP/JSON in a file, for those without a collector: a line per batch, as its file exporter has it.

Consumes OpenTelemetry's finished spans; produces `<folder>/<service>-<instance>.jsonl`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEME = "file:"


class SpanFile:
    """One process's spans. `write` raises OSError where the file cannot be written."""

    def __init__(self, endpoint: str, service: str, instance: str) -> None:
        """`endpoint` is `file:` and a folder, which is made where it is missing; `file:///var/spans` is one, too."""
        folder = Path(endpoint.removeprefix(SCHEME).removeprefix("//"))
        self._path = folder / f"{service}-{instance}.jsonl"

    def write(self, spans: Sequence[Any]) -> None:
        """Append them."""
        if not spans:
            return
        group = {
            "resource": {"attributes": _attributes(spans[0].resource.attributes)},
            "scopeSpans": [{"scope": {"name": "dopd"}, "spans": [_span(span) for span in spans]}],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"resourceSpans": [group]}) + "\n")


def _span(span: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        **_ids(span.context),
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from 1
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "links": [_ids(link.context) for link in span.links],
    }
    if span.parent is not None:
        told["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.status.description:
        told["status"] = {"code": 2, "message": span.status.description}
    return told


def _ids(context: Any) -> dict[str, str]:
    return {"traceId": f"{context.trace_id:032x}", "spanId": f"{context.span_id:016x}"}


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64-bit integers are strings in OTLP/JSON
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}
