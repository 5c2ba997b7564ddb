"""OpenTelemetry: spans out of stretches of time that are over, sent to a collector over OTLP/http.

Consumes the standard `OTEL_…` variables and finished `Stretch`es; produces spans in batches, from a thread of its own.
Nothing of OpenTelemetry is imported unless an endpoint is set. A collector that is away costs log lines at long
intervals and the spans that do not fit the queue, nothing else.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dopd.obs.log import get_logger
from dopd.obs.span_file import SCHEME, SpanFile

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SAY_AGAIN_S = 60.0
"""How often at most the loss of spans is logged."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Something that took from `start_s` to `end_s`, in seconds since the epoch."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Begun:
    """Something that goes on since `start_s`."""

    name: str
    start_s: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Texts and numbers."""


@dataclass(slots=True)
class Span:
    """What goes on. `traceparent` names it to its parts, also in other processes. While tracing is off it does nothing,
    and its parts belong to what it would have been a part of."""

    traceparent: str = ""
    span: Any = None
    start_s: float = 0.0

    def end(self, end_s: float, error: str = "") -> None:
        """It is over. `error` says what went wrong."""
        if self.span is None:
            return
        if error:
            from opentelemetry.trace import StatusCode

            self.span.set_status(StatusCode.ERROR, error)
        self.span.end(_nano(max(self.start_s, end_s)))


def begin(tracing: "Tracing | None", one: Begun, traceparent: str = "", links: Sequence[str] = ()) -> Span:
    """`Tracing.begin`, also while it is off."""
    return Span(traceparent) if tracing is None else tracing.begin(one, traceparent, links)


class Tracing:
    """Where spans go. `from_environment` makes one if tracing is on."""

    def __init__(self, service: str, instance: str, exporter: "SpanExporter", now: Callable[[], float]) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": service, "service.instance.id": instance})
        # Its own end is `stop`: at the interpreter's exit it would wait for a dead collector.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        watched: Any = _Watched(exporter, now)
        self._provider.add_span_processor(BatchSpanProcessor(watched))
        self._tracer = self._provider.get_tracer("dopd")
        self._api, self._propagator = trace, TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls, service: str, instance: str, now: Callable[[], float]) -> "Tracing | None":
        """None without an endpoint (a URL, or `file:` and a folder), or where `OTEL_SDK_DISABLED` or
        `OTEL_TRACES_EXPORTER=none` turns it off.

        The sampler is that of `OTEL_TRACES_SAMPLER` (default: all, and as the caller decided for its own). `now` is
        the clock that spaces the log lines, in seconds.
        """
        off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        off = off or os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
        if off or not any(os.environ.get(name) for name in ENDPOINTS):
            return None
        endpoint = next(value for name in ENDPOINTS if (value := os.environ.get(name)))
        if endpoint.startswith(SCHEME):
            return cls(service, instance, _filed(SpanFile(endpoint, service, instance)), now)
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        # It logs every try of every batch; `_Watched` says what there is to say.
        logging.getLogger(trace_exporter.__name__).setLevel(logging.CRITICAL)
        return cls(service, instance, trace_exporter.OTLPSpanExporter(), now)

    def record(self, whole: Stretch, parts: Sequence[Stretch], traceparent: str = "", error: str = "") -> None:
        """A server span and its children, all over already. `traceparent` is its parent, if there is one.

        Never waits: what does not fit the queue is dropped. About 15 µs per span, and as much again in the thread.
        """
        trace = self._api
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            whole.name, parent, trace.SpanKind.SERVER, dict(whole.attributes), start_time=_nano(whole.start_s)
        )
        if span.is_recording():
            inside = trace.set_span_in_context(span)
            for part in parts:
                child = self._tracer.start_span(
                    part.name, inside, attributes=dict(part.attributes), start_time=_nano(part.start_s)
                )
                child.end(_nano(max(part.start_s, part.end_s)))
            if error:
                span.set_status(trace.StatusCode.ERROR, error)
        span.end(_nano(max(whole.start_s, whole.end_s)))

    def begin(self, one: Begun, traceparent: str = "", links: Sequence[str] = ()) -> "Span":
        """A span that is not over yet, a part of the one that `traceparent` names and linked to others."""
        trace = self._api
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        others = [trace.get_current_span(self._propagator.extract({"traceparent": each})) for each in links if each]
        span = self._tracer.start_span(
            one.name, parent, attributes=dict(one.attributes), start_time=_nano(one.start_s),
            links=[trace.Link(other.get_span_context()) for other in others],
        )  # fmt: skip
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span))
        return Span(carrier.get("traceparent", ""), span, one.start_s)

    async def stop(self, timeout_s: float) -> None:
        """Send what is left, for so long at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has gone: it took too long
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=end, name="telemetry-end", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                await done.wait()
        except TimeoutError:
            get_logger().warning("spans_not_sent", timeout_s=timeout_s)


class _Watched:
    """An exporter whose failures are told once in a while, however many there are. Runs in the exporting thread."""

    def __init__(self, exporter: "SpanExporter", now: Callable[[], float]) -> None:
        self._exporter, self._now = exporter, now
        self._lost = 0
        self._said_s = float("-inf")

    def export(self, spans: Sequence[Any]) -> Any:
        result = self._exporter.export(spans)
        if result.name != "SUCCESS":
            self._lost += len(spans)
        now_s = self._now()
        if self._lost and now_s - self._said_s >= SAY_AGAIN_S:
            self._said_s = now_s
            get_logger().warning("spans_lost", spans=self._lost, reason="the collector did not take them")
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _filed(file: SpanFile) -> Any:
    """An exporter to a file."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Filed(SpanExporter):
        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            try:
                file.write(spans)
            except OSError:
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS

    return Filed()


def _nano(at_s: float) -> int:
    return int(at_s * 1e9)
