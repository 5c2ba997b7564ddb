"""What one connection may take of the gateway: clients that are slow, endless, too many, or never read."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import repeat
from typing import Any

import httpx
import pytest

from dopd.config import HttpConfig
from dopd_gateway.http import create_app
from dopd_gateway.http_connection import MAX_HEADERS, MAX_PIPELINED
from dopd_gateway.http_server import HttpServer, connections_for
from dopd_gateway.stream import Piece
from tests.text_side import MODEL, ScriptedGateway, ids_of, pieces, text_gateway

LIMIT_S = 10.0
"""For what must happen soon; a test that needs it fails."""
BODY_LIMIT = 4 * 1024 * 1024
BODY = json.dumps({"model": MODEL, "prompt": "The quick", "max_tokens": 5}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n"


def scripted() -> ScriptedGateway:
    return ScriptedGateway(pieces(ids_of(" fox")))


class Client:
    """A connection of our own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of one answer with a length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), LIMIT_S)
        status, *lines = head.decode().rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), LIMIT_S)
        return int(status.split()[1]), headers, json.loads(body)

    async def ended(self) -> bytes:
        """What comes until the server hangs up, which it must."""
        try:
            return await asyncio.wait_for(self.reader.read(), LIMIT_S)
        except ConnectionError:
            return b""

    async def refused(self, status: int, code: str) -> dict[str, str]:
        """The answer is this error in OpenAI's shape, and the last; its headers."""
        got, headers, body = await self.answer()
        assert (got, body["error"]["code"]) == (status, code), body
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert headers["connection"] == "close" and await self.ended() == b""
        return headers


class Server:
    def __init__(self, url: str, gateway: ScriptedGateway) -> None:
        self.url, self.gateway = url, gateway
        self._clients: list[Client] = []

    async def client(self) -> Client:
        host, port = self.url.removeprefix("http://").split(":")
        self._clients.append(Client(*await asyncio.open_connection(host, int(port))))
        return self._clients[-1]

    async def status(self) -> int:
        """Of one more request."""
        async with httpx.AsyncClient(base_url=self.url, timeout=LIMIT_S) as client:
            return (await client.post("/v1/completions", content=BODY)).status_code

    async def serves(self) -> None:
        """The next request is served."""
        assert await self.status() == 200

    def close(self) -> None:
        for client in self._clients:
            client.writer.close()


@asynccontextmanager
async def serving(gateway: ScriptedGateway | None = None, **limits: Any) -> AsyncIterator[Server]:
    gateway = gateway or scripted()
    app = create_app(text_gateway(gateway), BODY_LIMIT)
    http = HttpServer(app, "127.0.0.1", 0, HttpConfig(**limits), stop_timeout_s=1)
    await http.start()
    server = Server(f"http://127.0.0.1:{http.port}", gateway)
    try:
        yield server
    finally:
        server.close()
        await http.stop()


@pytest.mark.parametrize("sent", [b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "])
async def test_a_header_that_does_not_end_is_408(sent: bytes) -> None:
    async with serving(header_timeout_s=0.2) as server:
        client = await server.client()
        await client.send(sent)
        await server.serves()
        await client.refused(408, "request_timeout")


async def test_a_connection_that_says_nothing_is_closed_in_silence() -> None:
    async with serving(header_timeout_s=0.2) as server:
        client = await server.client()
        assert await client.ended() == b""


async def test_a_further_request_on_a_connection_has_the_same_time() -> None:
    async with serving(header_timeout_s=0.2) as server:
        client = await server.client()
        await client.send(HEALTH)
        assert (await client.answer())[0] == 200
        await asyncio.sleep(0.5)  # idle, which is another limit
        await client.send(HEALTH + b"GET /hea")
        assert (await client.answer())[0] == 200
        await client.refused(408, "request_timeout")


async def test_an_idle_connection_is_closed_also_when_it_sends_empty_lines() -> None:
    async with serving(keep_alive_s=1) as server:
        client = await server.client()
        await client.send(HEALTH)
        assert (await client.answer())[0] == 200
        await client.send(b"\r\n\r\n")
        assert await client.ended() == b""


@pytest.mark.parametrize(
    "sent",
    [HEAD % len(BODY), HEAD % len(BODY) + BODY[:-1], CHUNKED + b"5\r\n{\"mod", CHUNKED + b"2\r\n{}\r\n0\r\nA: "],
    ids=["no body", "one byte is missing", "half a chunk", "trailers"],
)  # fmt: skip
async def test_a_body_that_does_not_end_is_408(sent: bytes) -> None:
    async with serving(body_timeout_s=0.2) as server:
        client = await server.client()
        await client.send(sent)
        await server.serves()
        await client.refused(408, "request_timeout")


async def test_a_body_that_trickles_is_408_however_steadily_it_comes() -> None:
    async with serving(body_timeout_s=0.3) as server:
        client = await server.client()
        await client.send(HEAD % len(BODY))

        async def trickle() -> None:
            for byte in BODY:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        await client.refused(408, "request_timeout")
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        await server.serves()


async def test_the_rest_of_a_body_that_was_refused_by_its_length_has_the_same_time() -> None:
    async with serving(body_timeout_s=0.3) as server:
        client = await server.client()
        await client.send(HEAD % (BODY_LIMIT + 1) + BODY)
        assert (await client.answer())[0] == 413
        assert (await client.ended())[:12] == b"HTTP/1.1 408"


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /health HTTP/1.1\r\nX-Long: ", *[b"x" * 8192] * 5],
        [b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 500) for n in range(80)) + b"\r\n"],
        [b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(MAX_HEADERS + 1)) + b"\r\n"],
    ],
    ids=["one endless field", "a long path", "many bytes", "many fields"],
)
async def test_a_header_that_is_too_large_is_431(parts: Sequence[bytes]) -> None:
    async with serving() as server:
        client = await server.client()
        for part in parts:
            client.writer.write(part)
        await client.refused(431, "header_too_large")
        await server.serves()


async def test_trailers_are_not_kept() -> None:
    async with serving() as server:
        client = await server.client()
        await client.send(CHUNKED + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY) + b"A: b\r\n" * 200 + b"\r\n")
        assert (await client.answer())[0] == 200


async def test_endless_trailers_are_cut_off() -> None:
    async with serving() as server:
        client = await server.client()
        await client.send(CHUNKED + b"2\r\n{}\r\n0\r\nA: ")
        client.writer.write(b"x" * 1_000_000)
        await client.refused(400, "invalid_request_error")
        await server.serves()


@pytest.mark.parametrize(
    "sent",
    [b"HELLO\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"GET /\xe4 HTTP/1.1\r\n\r\n"],
)
async def test_what_is_no_http_is_400(sent: bytes) -> None:
    async with serving() as server:
        client = await server.client()
        await client.send(sent)
        await client.refused(400, "invalid_request_error")
        await server.serves()


async def test_one_connection_too_many_is_told_503_and_there_is_room_again_when_one_closes() -> None:
    async with serving(max_connections=2) as server:
        first, _, third = [await server.client() for _ in range(3)]
        await third.send(HEALTH)
        assert (await third.refused(503, "unavailable"))["retry-after"] == "1"
        await first.send(HEALTH)
        assert (await first.answer())[0] == 200
        first.writer.close()
        async with asyncio.timeout(LIMIT_S):
            while await server.status() != 200:  # noqa: ASYNC110 - the server tells nobody that it has noticed
                await asyncio.sleep(0.02)


async def test_a_connection_too_many_that_says_nothing_is_closed() -> None:
    async with serving(max_connections=1) as server:
        await server.client()
        assert await (await server.client()).ended() == b""


async def test_what_is_held_of_unfinished_bodies_is_bounded_over_all_connections() -> None:
    """Each of them is within the limit of one."""
    async with serving(max_receiving_mb=2) as server:
        clients = [await server.client() for _ in range(3)]
        for client in clients:
            await client.send(HEAD % (BODY_LIMIT - 1) + b" " * 900_000)
        ended = [asyncio.create_task(client.ended()) for client in clients]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_S)
        texts = [task.result() for task in ended if task.done()]
        assert [text[:12] for text in texts] == [b"HTTP/1.1 503"] and b"too many requests are being received" in texts[
            0
        ]
        for task in ended:
            task.cancel()
        await server.serves()
    assert not server.gateway.streams[1:]


async def test_a_stream_that_nobody_reads_is_given_up_and_its_work_aborted() -> None:
    piece = Piece(0, tuple(ids_of(" fox jumps") * 1000), ())
    gateway = ScriptedGateway(repeat(piece))  # type: ignore[arg-type]
    async with serving(gateway, write_timeout_s=0.3) as server:
        client = await server.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        body = json.dumps({"model": MODEL, "prompt": "x", "stream": True})
        await client.send(HEAD % len(body) + body.encode())
        await asyncio.wait_for(server.gateway.opened.wait(), LIMIT_S)
        await asyncio.wait_for(server.gateway.streams[0].cancelled.wait(), LIMIT_S)
        server.gateway.script = pieces(ids_of(" fox"))
        await server.serves()


async def test_requests_that_wait_on_one_connection_are_answered_in_order_up_to_a_number() -> None:
    async with serving() as server:
        client = await server.client()
        await client.send(HEALTH * (MAX_PIPELINED + 1))
        for _ in range(MAX_PIPELINED + 1):
            assert (await client.answer())[0] == 200
        await client.send(HEALTH * 10_000)
        assert (await client.ended()).count(b"HTTP/1.1 200") <= MAX_PIPELINED + 1
        await server.serves()


async def test_a_client_that_goes_takes_all_its_waiting_requests_along() -> None:
    async with serving(ScriptedGateway(pieces(ids_of(" fox"), end=None))) as server:
        client = await server.client()
        stream = json.dumps({"model": MODEL, "prompt": "x", "stream": True}).encode()
        await client.send((HEAD % len(stream) + stream) * 2)
        await asyncio.wait_for(server.gateway.opened.wait(), LIMIT_S)
        client.writer.transport.abort()
        await asyncio.wait_for(server.gateway.streams[0].cancelled.wait(), LIMIT_S)


def test_as_many_connections_as_the_system_lets_the_process_have_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: asked.append(limits))
    assert connections_for(500) == 500 and not asked
    assert connections_for(2000) == 2000 and asked.pop()[0] > 2000
    assert 3000 < connections_for(10_000) < 4096 and asked == [(4096, 4096)]
