"""As many tokens as a gateway streams: many long answers at once, read by clients that do next to nothing.

Consumes where to ask; produces seconds, and the CPU seconds of processes of its own. The same number of messages of the
same size through raw nats-py is what a Python process could do at best. As a program it is that sender, or answers.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import nats
import uvloop
from nats.aio.msg import Msg

from dopd.runtime.lifeline import PARENT_VARIABLE, hold_to_parent
from dopd_proto.asked import Chunk, Generate
from dopd_proto.codec import encode
from dopd_proto.subjects import GENERATE
from tests.bench.processes import taken

LIMIT_S = 120.0
BURST = 500
CHUNK = encode(Chunk(request_id="req-0123456789ab", seq=1000, index=1000, text=" badefo"))
_MADE = re.compile(rb'"completion_tokens":(\d+)')
Took = tuple[float, dict[str, float]]


@dataclass(frozen=True)
class Stream:
    """So many answers of that length at once."""

    count: int
    osl_tokens: int

    @property
    def tokens(self) -> int:
        return self.count * self.osl_tokens

    def prompt(self, number: int) -> str:
        return " ".join(f"s{number}x{place}" for place in range(20))


class _Reader(asyncio.Protocol):
    """Asks, drops what comes but for the last bytes, and hears the end of the body."""

    def __init__(self, request: bytes, over: "asyncio.Future[int]") -> None:
        self._request, self._over, self._tail = request, over, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-1024:]
        if self._tail.endswith(b"0\r\n\r\n"):
            made = _MADE.search(self._tail)
            self._over.set_result(int(made[1]) if made else 0)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._over.done():
            self._over.set_exception(ConnectionError(f"the answer ended early: {self._tail!r}"))


async def by_http(url: str, model: str, streams: Stream) -> Took:
    """Seconds for all of them. Raises AssertionError when tokens are missing."""
    to, loop = urlsplit(url), asyncio.get_running_loop()
    ends = []
    began_s = time.perf_counter()
    for number in range(streams.count):
        body = msgspec.json.encode({
            "model": model, "prompt": streams.prompt(number), "max_tokens": streams.osl_tokens, "stream": True,
            "ignore_eos": True, "stream_options": {"include_usage": True},
        })  # fmt: skip
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {to.netloc}\r\nContent-Type: application/json\r\n"
        over = loop.create_future()
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        await loop.create_connection(lambda request=request, over=over: _Reader(request, over), to.hostname, to.port)
        ends.append(over)
    made = await asyncio.wait_for(asyncio.gather(*ends), LIMIT_S)
    assert sum(made) == streams.tokens, made
    return time.perf_counter() - began_s, {}


async def by_nats(url: str, model: str, streams: Stream) -> Took:
    """The same over NATS; the client counts messages and decodes none."""
    client, left, done = await nats.connect(url), streams.count, asyncio.Event()
    failed: list[bytes] = []

    async def take(message: Msg) -> None:
        nonlocal left
        if b"completion_tokens" in message.data or b"Failure" in message.data:
            failed.extend([message.data] if b"Failure" in message.data else [])
            left -= 1
            if not left:
                done.set()

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=take)
    await client.flush()
    began_s = time.perf_counter()
    for number in range(streams.count):
        wish = Generate(
            model=model, prompt=streams.prompt(number), max_tokens=streams.osl_tokens, stream=True, ignore_eos=True
        )
        await client.publish(GENERATE.at().name, encode(wish), reply=inbox)
    await asyncio.wait_for(done.wait(), LIMIT_S)
    took_s = time.perf_counter() - began_s
    await client.close()
    assert not failed, failed[:1]
    return took_s, {}


async def by_raw_nats(url: str, streams: Stream) -> Took:
    """One message for each token from a process of its own to this one: seconds, and CPU of sender and receiver."""
    client, seen, done = await nats.connect(url), 0, asyncio.Event()

    async def take(message: Msg) -> None:
        nonlocal seen
        seen += 1
        if seen == streams.tokens:
            done.set()

    await client.subscribe("bench.raw", cb=take, pending_msgs_limit=streams.tokens + 1)
    # Twice: the ping of a flush may overtake the subscription, which then misses the first messages.
    await client.flush()
    await client.flush()
    with program(url, str(streams.tokens)) as sender:
        assert sender.stdin is not None
        before, mine = taken(sender.pid).cpu_s, time.process_time()
        began_s = time.perf_counter()
        sender.stdin.write(b"go\n")
        sender.stdin.flush()
        await asyncio.wait_for(done.wait(), LIMIT_S)
        took_s = time.perf_counter() - began_s
        used = {"receiver": time.process_time() - mine, "sender": taken(sender.pid).cpu_s - before}
    await client.close()
    return took_s, used


async def round_trips(url: str, at_s: Sequence[float]) -> list[float]:
    """Seconds of raw requests at these times, answered by another process: what the broker alone takes, twice."""
    client, took_s = await nats.connect(url), []
    with program(url, "0"):
        began_s = time.perf_counter()
        for when_s in at_s:
            await asyncio.sleep(max(0.0, began_s + when_s - time.perf_counter()))
            sent_s = time.perf_counter()
            await client.request("bench.echo", CHUNK, timeout=5.0)
            took_s.append(time.perf_counter() - sent_s)
    await client.close()
    return took_s


@contextmanager
def program(url: str, count: str) -> Iterator["subprocess.Popen[bytes]"]:
    """This file as a process that is connected."""
    env = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    command = [sys.executable, "-m", "tests.bench.saturation", url, count]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


async def send(url: str, count: int) -> None:
    """Connect, say so, wait for a line, send; without a count: answer."""
    client = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await client.publish(message.reply, message.data)

    await client.subscribe("bench.echo", cb=answer)
    await client.flush()
    await client.flush()
    print("ready", flush=True)
    if count:
        sys.stdin.readline()
    for number in range(count):
        await client.publish("bench.raw", CHUNK)
        if number % BURST == BURST - 1:
            await asyncio.sleep(0)
    await client.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    hold_to_parent()
    uvloop.run(send(sys.argv[1], int(sys.argv[2])))
