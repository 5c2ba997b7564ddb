"""Logs of a whole emulated cluster: JSON, with the ids of requests and traces, without what anybody said."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog

from dopd.bus.common import shown
from dopd.bus.nats_bus import NatsBus
from dopd.config import ClusterConfig, Config, PolicyConfig
from dopd.engine.sim.tokens import VOCABULARY
from dopd.errors import BusError
from dopd.obs.log import set_up
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.http import create_app
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_gateway.over import log_ended
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.asked import Chat, Completion
from dopd_proto.subjects import CHAT

PROMPT, KEY = "swordfish under the mat", "sk-very-secret"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
HEADERS = {"traceparent": TRACEPARENT, "authorization": f"Bearer {KEY}"}
CONFIG = Config(cluster=ClusterConfig(prefill=1, decode=2), policy=PolicyConfig(name="simple"))


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a service would write, at level DEBUG."""
    root, out = logging.getLogger(), io.StringIO()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    structlog.reset_defaults()
    set_up("test", "debug", "json", out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.configure(**before)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    """Every line, which must be an object."""
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def use(cluster: LocalCluster) -> None:
    """Requests of all kinds: answered, wrong, too late, on a worker that dies; and a bug."""
    api = TextGateway(cluster.gateway, NumberTokenizer(VOCABULARY), cluster.runtime, Slo(), 60.0)
    public = NatsApi(cluster.broker.connect("api"), api)
    await public.start()
    transport = httpx.ASGITransport(app=create_app(api, 1 << 20), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gateway", timeout=None, headers=HEADERS
    ) as client:
        asked = {"model": "sim", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True}
        running = asyncio.create_task(client.post("/v1/completions", json=asked))
        await asyncio.sleep(0.5)
        cluster.kill_worker(next(w for w, worker in cluster.workers.items() if w != "w1" and worker.held))
        assert (await running).status_code == 200
        assert (await client.post("/v1/completions", json={**asked, "user": 7, PROMPT: 1})).status_code == 400
        assert (await client.post("/v1/completions", json={**asked, "timeout_s": 0.01})).status_code == 504
        await client.post(
            "/v1/chat/completions", json={"model": "sim", "messages": [{"role": "user", "content": PROMPT}]}
        )
    bus = cluster.broker.connect("client")
    chat = Chat(model="sim", messages=[{"role": "user", "content": PROMPT}], max_tokens=3, traceparent=TRACEPARENT)
    await bus.request(CHAT.at(), chat, (Completion,), 30.0)
    api.open = _bug  # type: ignore[method-assign]
    with pytest.raises(Exception, match="log says why"):
        await bus.request(CHAT.at(), chat, (Completion,), 30.0)
    await public.stop(1.0)


async def _bug(*_: Any) -> Any:
    raise ZeroDivisionError("of ours")


@pytest.fixture
def ran(written: io.StringIO) -> io.StringIO:
    async def main() -> None:
        cluster = LocalCluster(VirtualRuntime(0), CONFIG, latency_s=2e-4)
        await cluster.start()
        cluster.gateway._on_ended = log_ended
        await asyncio.sleep(6.0)
        await use(cluster)
        cluster.buses["g1"].faults.report("slow_consumer", "dopd.v1.x", "a test")
        await asyncio.sleep(2.0)
        await cluster.stop()

    run_virtual(main())
    return written


def test_every_line_is_json_with_its_service_level_time_and_event(ran: io.StringIO) -> None:
    for line in lines(ran):
        assert line["service"] == "test" and line["event"] and line["level"] in ("debug", "info", "warning", "error")
        assert line["timestamp"].endswith("Z")
    assert {"request_ended", "attempt_lost", "worker_lost", "request_failed", "worker_started"} <= {
        line["event"] for line in lines(ran)
    }


def test_lines_on_a_request_name_it_and_its_trace(ran: io.StringIO) -> None:
    found = lines(ran)
    for event in ("request_ended", "attempt_lost"):
        of_it = [line for line in found if line["event"] == event]
        assert of_it and all(line["request_id"].startswith("req-") and line["trace_id"] == TRACE for line in of_it)
    (failed,) = [line for line in found if line["event"] == "request_failed"]
    assert failed["trace_id"] == TRACE and "ZeroDivisionError" in failed["exception"]
    assert not any("request_id" in line for line in found if line["event"] in ("worker_lost", "worker_started"))
    ends = {line["end"]: line for line in found if line["event"] == "request_ended"}
    assert ends["failed"]["code"] == "deadline_exceeded" and ends["length"]["osl_tokens"] > 0


def test_nothing_of_prompts_answers_or_keys_is_written(ran: io.StringIO) -> None:
    text = ran.getvalue()
    tokens = NumberTokenizer(VOCABULARY).encode(PROMPT)
    for secret in (PROMPT, "swordfish", KEY, str(tokens)[1:-1]):
        assert secret not in text


def test_libraries_and_faults_of_the_bus_go_through_the_same_form(ran: io.StringIO) -> None:
    found = [line for line in lines(ran) if line.get("logger") == "dopd.bus"]
    assert any("slow_consumer" in line["event"] for line in found)


def test_what_is_not_for_its_user_is_below_the_level(written: io.StringIO) -> None:
    structlog.reset_defaults()
    set_up("test", "info", "json", written)
    structlog.get_logger().debug("request_ended", request_id="req-1")
    structlog.get_logger().info("worker_started")
    assert [line["event"] for line in lines(written)] == ["worker_started"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nats://me:secret@broker:4222", "nats://broker:4222"),
        ("nats://token@broker:4222", "nats://broker:4222"),
        ("nats://a:b@one:1,nats://c:d@two:2", "nats://one:1,nats://two:2"),
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
    ],
)
def test_the_brokers_address_is_shown_without_its_password(url: str, text: str) -> None:
    assert shown(url) == text


async def test_not_even_an_error_tells_the_brokers_password() -> None:
    with pytest.raises(BusError) as caught:
        await NatsBus.connect("nats://me:secret@127.0.0.1:1", "test", connect_timeout_s=0.5)
    assert "secret" not in str(caught.value) and "127.0.0.1:1" in str(caught.value)
