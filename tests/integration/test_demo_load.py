"""The demo's load and the HTTP client under it, against a server that speaks plain bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dopd.config import WorkloadConfig
from dopd.supervisor import http, load
from dopd.supervisor.load import Tally, status_line
from dopd.supervisor.ready import Cluster, http_ok, speaks
from dopd_proto.base import Role
from dopd_proto.telemetry import WorkerState

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
        await answer(head + await reader.readexactly(length[0] if length else 0), writer)
        writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def plain(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def saying(reply: bytes) -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()

    return answer


async def test_a_chunked_body_is_read_line_by_line_wherever_the_chunks_end() -> None:
    async with server(saying(chunked(b"data: a\nda", b"ta: b", b"\n\nrest"))) as url, http.request(url) as response:
        assert [line async for line in response.lines()] == [b"data: a", b"data: b", b"", b"rest"]


async def test_a_get_returns_status_and_body_and_0_when_nobody_is_there() -> None:
    async with server(saying(plain(404, b"nope"))) as url:
        assert await http.get(url) == (404, b"nope")
        assert await http_ok(url)() is False
    assert await http.get(url) == (0, b"")
    assert await http_ok(url)() is False


async def test_a_server_that_never_answers_is_given_up() -> None:
    async def silent(_: bytes, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.0)

    async with server(silent) as url:
        assert await http.get(url, timeout_s=0.05) == (0, b"")


async def test_a_greeting_other_than_the_expected_is_not_ready() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}")
        writer.close()

    listening = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        assert await speaks("127.0.0.1", port, b"INFO ")() is True
        assert await speaks("127.0.0.1", port, b"HTTP/")() is False
    assert await speaks("127.0.0.1", port)() is False


async def test_a_streamed_answer_counts_with_its_first_token_and_one_that_breaks_off_as_failed() -> None:
    tally = Tally()
    async with server(saying(chunked(b'data: {"x":1}\n\n', b"data: [DONE]\n\n"))) as url:
        await load._one(url, b"{}", tally)
    async with server(saying(chunked(b'data: {"x":1}\n\n'))) as url:
        await load._one(url, b"{}", tally)
    async with server(saying(plain(503, b'{"error":"full"}'))) as url:
        await load._one(url, b"{}", tally)
    await load._one(url, b"{}", tally)
    assert (tally.sent, tally.failed, len(tally.ttft_s)) == (4, 3, 2)
    assert "ConnectionRefusedError" in tally.error


async def test_requests_follow_the_workload_and_name_the_served_model() -> None:
    seen: list[dict[str, object]] = []
    enough = asyncio.Event()

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models"):
            writer.write(plain(200, b'{"data": [{"id": "tiny"}]}'))
            return
        assert head.startswith(b"POST /v1/completions")
        seen.append(json.loads(body))
        writer.write(chunked(b"data: [DONE]\n\n"))
        if len(seen) == 30:
            enough.set()

    from dopd.supervisor.console import Console

    workload = WorkloadConfig(requests_per_s=1000.0, isl_tokens=50, osl_tokens=10)
    async with server(answer) as url:
        task = asyncio.create_task(load.run(url, workload, Cluster(), Console()))
        async with asyncio.timeout(10.0):
            await enough.wait()
        task.cancel()
        await asyncio.wait({task})
    assert all(request["model"] == "tiny" and request["stream"] is True for request in seen)
    assert all(1 <= len(request["prompt"]) <= 200 and 1 <= request["max_tokens"] <= 40 for request in seen)  # type: ignore


def state(worker_id: str, role: Role, running: int) -> WorkerState:
    return WorkerState(
        worker_id=worker_id, incarnation="i", role=role, epoch=1, phase="serving", model="m", kv_domain="local",
        sent_s=0.0, lease_s=3.0, running=running,
    )  # fmt: skip


def test_the_status_line_has_the_rate_the_times_the_roles_and_the_last_error() -> None:
    cluster = Cluster()
    cluster.states = {"w2": state("w2", "decode", 2), "w1": state("w1", "prefill", 1)}
    tally = Tally(sent=10, failed=1, ttft_s=[0.1, 0.2, 0.3], error="full")
    line = status_line(tally, cluster)
    assert " 2.0 requests/s  TTFT p50 0.200 s" in line
    assert line.endswith("running   3  roles w1:P w2:D  failed 1: full")
    assert "TTFT: none yet" in status_line(Tally(), Cluster())
