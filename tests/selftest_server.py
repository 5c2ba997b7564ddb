"""A completion server of known latencies, to test a load generator against: it logs when it really wrote what.

Consumes OpenAI completion requests whose prompt is the text "<index> <behaviour>"; latencies are a function of the seed
and the index. Produces streamed answers, and at `/truth` a JSON list of `Truth`. Behaviours are in `BEHAVIOURS`.
`python -m tests.selftest_server --seed 3` prints its URL and serves until it is ended, or its parent is.
"""

import argparse
import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from dopd.runtime.lifeline import hold_to_parent
from dopd_loadgen.model import Planned

MODEL = "selftest"
_OPTIONAL = ("stream_options", "ignore_eos", "min_tokens")
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_NO_LINGER = struct.pack("ii", 1, 0)
_BODY_END = b"0\r\n\r\n"


def prompt(planned: Planned) -> str:
    """What a client has to send; the request's `text` is the behaviour."""
    return f"{planned.index} {planned.text}"


class Truth(msgspec.Struct):
    """What was really done for one request, on the monotonic clock. `writes_s` has an entry for each token event."""

    index: int
    behaviour: str
    received_s: float
    writes_s: list[float] = []
    traceparent: str = ""
    fields: dict[str, Any] = {}
    connection: int = 0
    hung_up: bool = False


@dataclass
class Settings:
    """`usage` is how it counts tokens: with each event, at the end, or not; `pack` how many tokens an event holds.

    `refuses` are fields that get a 400, by name if `names_them`. `ready_after` pages are answered 503 first.
    """

    seed: int = 0
    ttft_s: tuple[float, float] = (0.05, 0.3)
    gap_s: tuple[float, float] = (0.01, 0.04)
    stall_s: float = 2.0
    usage: str = "continuous"
    pack: int = 1
    refuses: frozenset[str] = frozenset()
    names_them: bool = True
    api_key: str = ""
    ready_after: int = 0
    timeline: tuple[tuple[str, float, float, str], ...] = ()


class SelftestServer:
    """One listening socket on a loop. `truths` in the order in which requests came in."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.truths: list[Truth] = []
        self.connections = self.turned_away = 0
        self.frozen_until_s = 0.0
        self._open: set[_Connection] = set()

    async def start(self, port: int = 0) -> str:
        """Listen; the URL."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything."""
        self._server.close()
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.wait_for(self._server.wait_closed(), 5)


@dataclass
class Answer:
    """What is to be written and when: seconds after the one before it. `end` comes after the last event."""

    events: list[tuple[float, bytes]]
    end: Callable[["_Connection"], None]
    truth: Truth
    tokens: int = 0


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: SelftestServer) -> None:
        self.server, self.loop = server, asyncio.get_running_loop()
        self._buffer = b""
        self._truth: Truth | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server._open.add(self)
        self.server.connections += 1
        self.number = self.server.connections

    def connection_lost(self, error: Exception | None) -> None:
        self.server._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._truth is not None:
            self._truth.hung_up = True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            request, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._page(request.split()[1], headers, rest[:length])

    def _page(self, path: str, headers: dict[str, str], body: bytes) -> None:
        server, settings = self.server, self.server.settings
        if server.turned_away < settings.ready_after:
            server.turned_away += 1
            self.say(503, {"error": {"message": "still loading"}})
        elif settings.api_key and headers.get("authorization") != f"Bearer {settings.api_key}":
            self.say(401, {"error": {"message": "invalid key"}})
        elif path == "/truth":
            self.say(200, msgspec.to_builtins(server.truths))
        elif path == "/v1/models":
            self.say(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif path == "/v1/completions":
            self._completion(headers, msgspec.json.decode(body))
        else:
            self.say(404, {"detail": "Not Found"})

    def _completion(self, headers: dict[str, str], fields: dict[str, Any]) -> None:
        settings = self.server.settings
        options = fields.get("stream_options") or {}
        for name in ("continuous_usage_stats", *_OPTIONAL):
            if name in settings.refuses and (name in fields or name in options):
                said = f"unknown field: {name}" if settings.names_them else "unknown field"
                self.say(400, {"error": {"message": said, "type": "invalid_request_error"}})
                return
        if fields["model"] != MODEL:
            self.say(404, {"error": {"message": f"The model `{fields['model']}` does not exist."}})
            return
        index, _, behaviour = fields["prompt"].partition(" ")
        truth = Truth(int(index), behaviour, time.monotonic(), [], headers.get("traceparent", ""), fields, self.number)
        if fields["max_tokens"] > 1:  # not the probe
            self.server.truths.append(truth)
        self._truth = truth
        BEHAVIOURS[behaviour](self, planned_answer(settings, truth))

    # --- writing ------------------------------------------------------------------------------------------------

    def say(self, status: int, what: Any, kind: str = "application/json") -> None:
        """A whole answer at once."""
        self._truth = None
        body = msgspec.json.encode(what)
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def stream(self, answer: Answer) -> None:
        """Event by event, each at its time."""
        self._next(answer, 0, self.loop.time())

    def _next(self, answer: Answer, place: int, last_s: float) -> None:
        if place == len(answer.events):
            answer.end(self)
            return
        wait_s, _ = answer.events[place]
        # From when the one before it was due, not written: a late write does not make all others late.
        self._timer = self.loop.call_at(last_s + wait_s, self._write, answer, place, last_s + wait_s)

    def _write(self, answer: Answer, place: int, due_s: float) -> None:
        if self.server.frozen_until_s > self.loop.time():
            self._timer = self.loop.call_at(self.server.frozen_until_s, self._write, answer, place, due_s)
            return
        data = answer.events[place][1]
        head = _STREAM_HEAD if place == 0 else b""
        self.transport.write(head + b"%x\r\n%b\r\n" % (len(data), data))
        answer.truth.writes_s.append(time.monotonic())
        self._next(answer, place + 1, due_s)

    def finish(self) -> None:
        """The body's end; the connection is used again."""
        self._truth = None
        self.transport.write(_BODY_END)


def planned_answer(settings: Settings, truth: Truth) -> Answer:
    """The answer in good order."""
    rng = random.Random(f"{settings.seed}/{truth.index}")
    wanted, fields = truth.fields["max_tokens"], truth.fields
    options = fields.get("stream_options") or {}
    continuous = settings.usage == "continuous" and options.get("continuous_usage_stats")
    at_end = settings.usage != "none" and options.get("include_usage")
    events = []
    made = 0
    while made < wanted:
        wait_s = rng.uniform(*(settings.gap_s if made else settings.ttft_s))
        made = min(made + (settings.pack if made else 1), wanted)
        usage = _usage(made) if continuous else None
        events.append((wait_s, event(choice(" word", "length" if made == wanted else None, usage))))
    tail = b""
    if at_end:
        timeline = {"timeline": settings.timeline} if settings.timeline else {}
        tail += event({"id": "cmpl-1", "choices": [], "usage": _usage(wanted), **timeline})
    tail += event(b"[DONE]")

    def end(connection: _Connection) -> None:
        connection.transport.write(b"%x\r\n%b\r\n" % (len(tail), tail))
        connection.finish()

    return Answer(events, end, truth, wanted)


def _usage(count: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}


def choice(text: str, finish: str | None = None, usage: dict[str, int] | None = None) -> dict[str, Any]:
    """One event's JSON, as long as a real one."""
    one = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
    return {**head, "choices": [one], "usage": usage}


def event(data: Any) -> bytes:
    """As a server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


# --- behaviours ---------------------------------------------------------------------------------------------------

Behaviour = Callable[[_Connection, Answer], None]


def _halfway(end: Callable[[_Connection], None], last: bytes = b"") -> Behaviour:
    def behave(connection: _Connection, answer: Answer) -> None:
        half = answer.events[: len(answer.events) // 2]

        def finally_(_: _Connection) -> None:
            if last:
                connection.transport.write(b"%x\r\n%b\r\n" % (len(last), last))
            end(connection)

        connection.stream(Answer(half, finally_, answer.truth))

    return behave


def _says(status: int, message: str) -> Behaviour:
    return lambda connection, answer: connection.say(status, {"error": {"message": message}})


def _stall(connection: _Connection, answer: Answer) -> None:
    """From now on the whole server stands still for a while."""
    connection.server.frozen_until_s = connection.loop.time() + connection.server.settings.stall_s
    connection.stream(answer)


def _reset(connection: _Connection) -> None:
    """Without lingering the kernel sends RST instead of FIN."""
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    connection.transport.abort()


def _nothing(connection: _Connection, answer: Answer | None = None) -> None:
    pass


BEHAVIOURS: dict[str, Behaviour] = {
    "": lambda connection, answer: connection.stream(answer),
    "stall": _stall,
    "early_end": _halfway(_Connection.finish),
    "too_short": _halfway(_Connection.finish, event(choice("", "stop")) + event(b"[DONE]")),
    "malformed": _halfway(_Connection.finish, event(b'{"choices": [{"text": ')),
    "error_event": _halfway(_Connection.finish, event({"error": {"message": "the engine died"}})),
    "mute": _halfway(_nothing),
    "reset": _halfway(_reset),
    "hang_up": _halfway(lambda connection: connection.transport.close()),
    "silent": _nothing,
    "json": lambda connection, answer: connection.say(200, {"choices": [{"text": "all at once"}]}),
    "no_http": lambda connection, answer: connection.transport.write(b"SMTP ready\r\n\r\n"),
    "400": _says(400, "no such thing"),
    "429": _says(429, "slow down"),
    "500": _says(500, "broken"),
    "503": _says(503, "full"),
}


async def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.selftest_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, nargs=2, default=(50.0, 300.0), metavar=("FROM", "TO"))
    parser.add_argument("--gap-ms", type=float, nargs=2, default=(10.0, 40.0), metavar=("FROM", "TO"))
    args = parser.parse_args()
    ttft_s, gap_s = ((low / 1e3, high / 1e3) for low, high in (args.ttft_ms, args.gap_ms))
    server = SelftestServer(Settings(seed=args.seed, ttft_s=ttft_s, gap_s=gap_s))
    print(await server.start(args.port), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    hold_to_parent()
    asyncio.run(main())
