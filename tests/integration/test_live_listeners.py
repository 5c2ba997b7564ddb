"""Listeners of the live page over sockets: order of events, limits, who does not read; nobody costs nothing."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from dopd.bus.memory import MemoryBroker
from dopd.config import Config
from dopd.obs.operator_http import OperatorHttp
from dopd.runtime.clock import RealRuntime
from dopd_gateway.fleet import Fleet
from dopd_gateway.live import listeners as module
from dopd_gateway.live import service
from dopd_gateway.live.listeners import HELD_BYTES, MOST_LISTENERS, Listeners, event
from dopd_proto.control import DecisionRecord, DecisionsReply, DecisionsRequest
from dopd_proto.subjects import DECISIONS
from dopd_proto.telemetry import WorkerState

LIMIT_S = 20.0


class Place:
    """An operator port with one stream, and how often a document was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.listeners = Listeners(self._document)
        self.operator = OperatorHttp({"/metrics": ("text/plain", lambda: b"one 1\n")}, "127.0.0.1", 0)
        self.operator.stream("/live", self.listeners.take)
        self.port = 0

    def _document(self) -> dict[str, Any]:
        self.asked += 1
        return {"number": 0}

    async def ask(self, path: str = "/live", receive_bytes: int = 0) -> tuple[asyncio.StreamReader, Any]:
        """A connection that has asked."""
        own = socket.socket()
        if receive_bytes:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=own, limit=1024)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        return reader, writer

    async def until(self, number: int) -> None:
        """Until so many listen."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.listeners) != number:  # noqa: ASYNC110 - nobody sets an event
                await asyncio.sleep(0.01)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    made.port = int((await made.operator.start()).rpartition(":")[2])
    yield made
    made.listeners.close()
    await made.operator.stop()


async def read_until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        return await reader.readuntil(end)


async def test_a_listener_gets_the_document_then_changes_and_the_end(place: Place) -> None:
    reader, _ = await place.ask()
    head = await read_until(reader, b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"text/event-stream" in head and b"Content-Security-Policy" in head
    assert await read_until(reader, b'"number":0}\n\n') == b'retry: 2000\n\nevent: snapshot\ndata: {"number":0}\n\n'
    for number in (1, 2):
        place.listeners.tell(event("update", {"number": number}))
    assert await read_until(reader, b":2}\n\n") == (
        b'event: update\ndata: {"number":1}\n\nevent: update\ndata: {"number":2}\n\n'
    )
    place.listeners.close()
    async with asyncio.timeout(LIMIT_S):
        assert await reader.read() == b""
    assert place.asked == 1


async def test_more_than_the_limit_are_told_to_come_later_and_a_place_becomes_free(place: Place) -> None:
    first = [await place.ask() for _ in range(MOST_LISTENERS)]
    await place.until(MOST_LISTENERS)
    reader, _ = await place.ask()
    head = await read_until(reader, b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"Retry-After" in head
    metrics, _ = await place.ask("/metrics")
    assert (await read_until(metrics, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    first[0][1].close()
    await place.until(MOST_LISTENERS - 1)
    again, _ = await place.ask()
    assert (await read_until(again, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_one_who_says_something_more_is_sent_away(place: Place) -> None:
    reader, writer = await place.ask()
    await place.until(1)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(LIMIT_S):
        assert b"one 1" not in await reader.read(-1)
    await place.until(0)


async def test_one_who_does_not_read_is_dropped_with_a_bounded_heap_and_the_others_hear_on(place: Place) -> None:
    _, silent = await place.ask(receive_bytes=4096)
    silent.transport.pause_reading()
    reader, _ = await place.ask()
    await place.until(2)
    told = 0
    async with asyncio.timeout(LIMIT_S):
        while not place.listeners.dropped:
            told += 1
            place.listeners.tell(event("update", {"number": told, "text": "x" * 50_000}))
            held = [writer.transport.get_write_buffer_size() for writer in place.listeners._read_s]
            assert all(size <= HELD_BYTES for size in held)
            seen = b""
            while f'"number":{told},'.encode() not in seen:
                seen = seen[-20:] + await reader.read(65536)
    await place.until(1)
    assert place.listeners.dropped == 1


async def test_one_who_reads_too_slowly_for_too_long_is_dropped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNREAD_S", -1.0)
    _, silent = await place.ask(receive_bytes=4096)
    silent.transport.pause_reading()
    await place.until(1)
    async with asyncio.timeout(LIMIT_S):
        while not place.listeners.dropped:
            place.listeners.tell(event("update", {"text": "x" * 20_000}))
            await asyncio.sleep(0)
    await place.until(0)


# --- the service ------------------------------------------------------------------------------------------------------


async def test_while_nobody_listens_no_document_is_made_and_the_planner_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, asked = [], []
    whole = service.snapshot
    monkeypatch.setattr(service, "snapshot", lambda *args: made.append(1) or whole(*args))
    monkeypatch.setattr(service, "LOOK_S", 0.01)
    monkeypatch.setattr(service, "ASK_EVERY_S", 0.02)
    broker = MemoryBroker()
    runtime, planner = RealRuntime(), broker.connect("planner")

    async def answer(request: DecisionsRequest) -> DecisionsReply:
        asked.append(request)
        record = DecisionRecord(
            decision_id="d-1", at_s=1.0, term=1, why="plan", reason="best_split", prefill=1, decode=1
        )
        return DecisionsReply(decisions=(record,))

    await planner.serve(DECISIONS.at(), answer)
    fleet = Fleet("g1", "g1-1")
    gateway = SimpleNamespace(gateway_id="g1", incarnation="g1-1", model="m", fleet=fleet, waiting=())
    context = SimpleNamespace(bus=broker.connect("g1"), runtime=runtime, config=Config())
    page = service.LivePage(context, gateway)  # type: ignore[arg-type]
    operator = OperatorHttp({}, "127.0.0.1", 0)
    port = int((await operator.start()).rpartition(":")[2])
    await page.start(operator)
    await asyncio.sleep(0.2)
    assert not made and not asked
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /live HTTP/1.1\r\n\r\n")
    await read_until(reader, b"event: snapshot\ndata: ")
    assert json.loads(await read_until(reader, b"\n\n"))["workers"] == {}
    await read_until(reader, b'"decisions":[{"id":"d-1"')  # an update, once the planner has answered
    fleet.heard(
        WorkerState(worker_id="w1", incarnation="i", role="prefill", epoch=1, phase="serving", model="m",
                    kv_domain="local", sent_s=runtime.now(), lease_s=60.0, drained_at_s=0.0), runtime.now(),
    )  # fmt: skip
    await read_until(reader, b'"workers":{"w1":{"role":"prefill","phase":"serving"')
    writer.close()
    async with asyncio.timeout(LIMIT_S):
        while len(page.listeners):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    before = len(made), len(asked)
    await asyncio.sleep(0.2)
    assert (len(made), len(asked)) == before
    await page.stop()
    await operator.stop()
