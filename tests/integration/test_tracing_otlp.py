"""Spans as a collector gets them: a sink on loopback decodes what the gateway's exporter sends."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
import structlog

from dopd.bus.memory import MemoryBus
from dopd.bus.nats_bus import NatsBus
from dopd.engine.sim.tokens import VOCABULARY
from dopd.errors import DeadlineExceeded
from dopd.obs.telemetry import Stretch, Tracing
from dopd.policy.simple import SIMPLE
from dopd.runtime.clock import RealRuntime
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.http import create_app
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_gateway.spans import Spans
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.codec import encode
from dopd_proto.request import Completion, Generate
from dopd_proto.subjects import GENERATE
from tests.nats_server import NatsServer, server_binary
from tests.otlp_sink import Sink
from tests.text_side import ScriptedGateway, ids_of, pieces, text_gateway

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
BODY: dict[str, Any] = {"model": "sim", "prompt": list(range(3, 903)), "max_tokens": 5, "ignore_eos": True}
SERVER, INTERNAL, ERROR = 2, 1, 2


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    running = Sink()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
    yield running
    running.close()


def tracing() -> Tracing:
    made = Tracing.from_environment("gateway", "g1", RealRuntime().now)
    assert made is not None
    return made


Test = Callable[[httpx.AsyncClient, MemoryBus], Awaitable[None]]


def traced(test: Test) -> None:
    """The test against an emulated cluster in virtual time; then what is left is sent."""
    spans = tracing()

    async def main() -> None:
        runtime = VirtualRuntime(0)
        cluster = LocalCluster(runtime, policy=SIMPLE, latency_s=2e-4)
        await cluster.start()
        cluster.gateway._on_ended = Spans(spans)
        await asyncio.sleep(1.0)
        api = TextGateway(cluster.gateway, NumberTokenizer(VOCABULARY), runtime, Slo(), 60.0)
        public = NatsApi(cluster.broker.connect("api"), api)
        await public.start()
        transport = httpx.ASGITransport(app=create_app(api, 1 << 20))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:
            await test(client, cluster.broker.connect("client"))
        await public.stop(1.0)
        await cluster.stop()

    run_virtual(main())
    asyncio.run(spans.stop(20.0))


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def over_http(client: httpx.AsyncClient, _: MemoryBus) -> None:
    headers = {"traceparent": TRACEPARENT}
    bodies = [{**BODY, "prompt": list(range(start, start + 900))} for start in (3, 1003, 2003)]
    answers = await asyncio.gather(*(client.post("/v1/completions", json=body, headers=headers) for body in bodies))
    assert [answer.status_code for answer in answers] == [200] * 3


def test_requests_of_one_caller_are_one_trace_with_a_span_per_phase_under_a_server_span(sink: Sink) -> None:
    traced(over_http)
    assert {span.trace_id.hex() for span in sink.spans} == {TRACE}
    assert len({span.span_id for span in sink.spans}) == len(sink.spans)
    roots = [span for span in sink.spans if span.name == "completion"]
    assert len(roots) == 3
    assert all(span.parent_span_id.hex() == PARENT and span.kind == SERVER for span in roots)
    for root in roots:
        about = attributes(root)
        assert (about["dopd.isl_tokens"], about["dopd.osl_tokens"], about["dopd.end"]) == (900, 5, "length")
        parts = {span.name: span for span in sink.spans if span.parent_span_id == root.span_id}
        assert {"sent", "prefilling", "first_token_sent", "kv_transfer", "decoding", "finished"} <= set(parts)
        assert all(span.kind == INTERNAL for span in parts.values())
        assert all(
            root.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano <= root.end_time_unix_nano
            for span in parts.values()
        )
        assert attributes(parts["sent"]) == {"dopd.attempt": 1}
        assert attributes(parts["prefilling"]).keys() == {"dopd.worker_id", "dopd.attempt", "dopd.epoch"}
        assert attributes(parts["prefilling"])["dopd.worker_id"] != attributes(parts["decoding"])["dopd.worker_id"]
    assert all(r["service.name"] == "gateway" and r["service.instance.id"] == "g1" for r in sink.resources)


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_valid_parent_each_request_is_a_trace_of_its_own(sink: Sink, traceparent: str) -> None:
    async def test(_: httpx.AsyncClient, bus: MemoryBus) -> None:
        for _number in range(2):
            await bus.request(GENERATE.at(), Generate(**BODY, traceparent=traceparent), (Completion,), 30.0)

    traced(test)
    roots = [span for span in sink.spans if span.name == "completion"]
    assert len({span.trace_id for span in roots}) == 2 and not any(span.parent_span_id for span in roots)


def test_over_nats_the_requests_own_field_names_the_trace(sink: Sink) -> None:
    async def test(_: httpx.AsyncClient, bus: MemoryBus) -> None:
        await bus.request(GENERATE.at(), Generate(**BODY, traceparent=TRACEPARENT), (Completion,), 30.0)

    traced(test)
    assert {span.trace_id.hex() for span in sink.spans} == {TRACE}


@pytest.mark.nats
@pytest.mark.parametrize("field", ["", f"00-{'1' * 32}-{PARENT}-01"])
def test_a_traceparent_header_of_a_nats_message_counts_unless_the_request_has_its_own(
    tmp_path: Path, field: str
) -> None:
    gateway = ScriptedGateway(pieces(ids_of(" brown fox")))

    async def main(url: str) -> None:
        bus = await NatsBus.connect(url, "gateway")
        api = NatsApi(bus, text_gateway(gateway))
        await api.start()
        client = await nats.connect(url)
        ask = Generate(model="tiny", prompt="The quick", max_tokens=100, traceparent=field)
        await client.request(GENERATE.at().name, encode(ask), timeout=10, headers={"traceparent": TRACEPARENT})
        await client.request(GENERATE.at().name, encode(ask), timeout=10)
        await client.close()
        await api.stop(1.0)
        await bus.drain()

    server = NatsServer(server_binary(), tmp_path)
    server.start()
    try:
        asyncio.run(main(server.url))
    finally:
        server.stop()
    assert [inbound.traceparent for inbound in gateway.inbounds] == [field or TRACEPARENT, field]


def test_a_request_that_fails_is_an_error_with_its_code(sink: Sink) -> None:
    async def test(client: httpx.AsyncClient, _: MemoryBus) -> None:
        body = {**BODY, "max_tokens": 2000, "timeout_s": 0.5}
        assert (await client.post("/v1/completions", json=body)).status_code == DeadlineExceeded.status

    traced(test)
    root = next(span for span in sink.spans if span.name == "completion")
    assert root.status.code == ERROR and "not finished in time" in root.status.message
    assert attributes(root)["error.type"] == DeadlineExceeded.code and attributes(root)["dopd.end"] == "failed"


@pytest.mark.parametrize("how", ["sampler", "caller"])
def test_what_is_not_sampled_is_not_sent(sink: Sink, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "sampler":
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    parent = TRACEPARENT if how == "sampler" else TRACEPARENT[:-1] + "0"

    async def test(client: httpx.AsyncClient, _: MemoryBus) -> None:
        answer = await client.post("/v1/completions", json=BODY, headers={"traceparent": parent})
        assert answer.status_code == 200

    traced(test)
    assert sink.spans == []


def test_a_collector_that_is_away_harms_nobody_and_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Sink()
    gone.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", gone.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    with structlog.testing.capture_logs() as logs:
        traced(over_http)
    assert [log["event"] for log in logs if log["log_level"] != "info"] == ["spans_lost"]


async def test_the_end_does_not_wait_for_a_collector_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(3600), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    spans = tracing()
    spans.record(Stretch("completion", 1.0, 2.0), [])
    with structlog.testing.capture_logs() as logs:
        await spans.stop(0.2)
    assert [log["event"] for log in logs] == ["spans_not_sent"]
    silent.close()


OFF = """
import sys
import dopd_gateway.__main__
from dopd.obs.telemetry import Tracing
assert Tracing.from_environment("gateway", "g1", lambda: 0.0) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_when_it_is_off_nothing_of_it_is_imported(env: dict[str, str]) -> None:
    command = [sys.executable, "-c", OFF]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
