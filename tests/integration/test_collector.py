"""The load generator's own spans at a collector: in the trace that the served system was told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dopd.errors import LoadError
from dopd_loadgen.collector import collector, send_client_spans
from dopd_loadgen.trace_ids import trace_of
from tests.load_runs import answer, failed, run_of

Seen = list[tuple[str, dict[str, str], dict[str, Any]]]


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen: Seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {key.lower(): value for key, value in self.headers.items()}
            seen.append((self.path, headers, json.loads(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield seen
    server.shutdown()
    server.server_close()


def test_each_request_is_a_client_span_in_the_trace_that_was_sent(sink: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret, x-two=2")
    run = run_of([answer(0, 1.0, [1.5, 1.6]), failed(1, 2.0, "rejected")])
    sent = [trace_of(99, index) for index in range(2)]
    for record, (trace_id, _) in zip(run.records, sent, strict=True):
        record.trace_id = trace_id
    send_client_spans(run, collector())
    ((path, headers, body),) = sink
    assert (path, headers["x-key"], headers["x-two"]) == ("/v1/traces", "secret", "2")
    spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [f"00-{s['traceId']}-{s['spanId']}-01" for s in spans] == [traceparent for _, traceparent in sent]
    assert [s.get("status", {}).get("code") for s in spans] == [None, 2]
    assert all(s["kind"] == 3 and "parentSpanId" not in s for s in spans)


def test_nothing_is_sent_where_no_collector_is_named_or_tracing_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert collector() == ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/own")
    assert collector() == "http://127.0.0.1:9/own"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert collector() == ""


def test_a_collector_that_is_away_is_named() -> None:
    with pytest.raises(LoadError, match=r"http://127\.0\.0\.1:9/v1/traces"):
        send_client_spans(run_of([answer(0, 1.0, [1.5])]), "http://127.0.0.1:9/v1/traces")
