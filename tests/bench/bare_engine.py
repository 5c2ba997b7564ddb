"""An emulated engine with nothing in front of it: `SimEngine` in a process, behind the least HTTP server that streams.

Consumes OpenAI completions and chats, in the gateway's made-up words; produces one event for each token. It is what
the way through a gateway is compared with, and what peers' proxies are put in front of. As a program,
`python -m tests.bench.bare_engine PROFILE.toml`, it prints its URL and serves until its parent ends.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httptools
import msgspec
import uvloop

from dopd.engine.contract import Job, JobOutput
from dopd.engine.sim.engine import SimEngine
from dopd.engine.sim.kvstore import LocalStore
from dopd.engine.sim.tokens import VOCABULARY
from dopd.perf.profile import read_coefficients
from dopd.runtime.clock import RealRuntime
from dopd.runtime.lifeline import hold_to_parent
from dopd_gateway.number_tokenizer import NumberTokenizer, word_of
from dopd_proto.request import Sampling

MODEL = "bench"
STORE_TOKENS = 1_000_000
WORDS = NumberTokenizer(VOCABULARY)
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_encode = msgspec.json.encode


class Server:
    """All connections of one engine."""

    def __init__(self, engine: SimEngine, runtime: RealRuntime) -> None:
        self.engine, self.runtime = engine, runtime
        self.answers: dict[str, _Answer] = {}

    def take(self, outputs: Sequence[JobOutput]) -> None:
        """What a step of the engine brought."""
        for output in outputs:
            answer = self.answers.get(output.job_id)
            if answer is not None:
                answer.tell(output)
            if output.end is not None:
                self.answers.pop(output.job_id, None)


class _Answer:
    """One completion on its way."""

    def __init__(self, transport: asyncio.Transport, body: dict[str, Any], prompt_tokens: int, chat: bool) -> None:
        self._transport, self._chat, self._prompt_tokens = transport, chat, prompt_tokens
        options = body.get("stream_options") or {}
        self._stream, self._made = body.get("stream", False), 0
        self._usage, self._continuous = options.get("include_usage"), options.get("continuous_usage_stats")
        kind = "chat.completion" if chat else "text_completion"
        kind += ".chunk" if chat and self._stream else ""
        self._head = {"id": "cmpl-0123456789abcdef", "object": kind, "created": 1_700_000_000, "model": MODEL}
        self._words: list[str] = []
        if self._stream:
            transport.write(_STREAM)

    def tell(self, output: JobOutput) -> None:
        """Tokens, and perhaps the end."""
        finish = output.end if output.end in ("stop", "length") else None
        last = len(output.tokens) - 1
        for place, token in enumerate(output.tokens):
            self._made += 1
            if self._stream:
                self._event(self._choice(" " + word_of(token), finish if place == last else None))
            else:
                self._words.append(" " + word_of(token))
        if finish is not None and self._stream:
            if self._usage:
                self._write(b"data: " + _encode({**self._head, "choices": [], "usage": self._used()}) + b"\n\n")
            self._write(b"data: [DONE]\n\n")
            self._transport.write(b"0\r\n\r\n")
        elif finish is not None:
            choices = [self._choice("".join(self._words), finish)]
            say(self._transport, 200, {**self._head, "choices": choices, "usage": self._used()})

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        words: dict[str, Any] = {"text": text}
        if self._chat:
            words = {"delta" if self._stream else "message": {"role": "assistant", "content": text}}
        return {"index": 0, **words, "logprobs": None, "finish_reason": finish}

    def _event(self, choice: dict[str, Any]) -> None:
        body = {**self._head, "choices": [choice]}
        if self._usage:
            body["usage"] = self._used() if self._continuous else None
        self._write(b"data: " + _encode(body) + b"\n\n")

    def _write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _used(self) -> dict[str, int]:
        both = self._prompt_tokens + self._made
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._made, "total_tokens": both}


class Connection(asyncio.Protocol):
    """One client; a request at a time."""

    def __init__(self, server: Server) -> None:
        self._server, self._job_id = server, ""
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._job_id in self._server.answers:
            del self._server.answers[self._job_id]
            self._server.engine.abort(self._job_id)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # some proxies try whether it is HTTP/2
            self._transport.close()

    def on_message_begin(self) -> None:
        self._path, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._path.decode()
        if path.endswith("completions"):
            self._complete(msgspec.json.decode(self._body), chat=path.endswith("chat/completions"))
        elif path == "/v1/models":
            say(self._transport, 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:  # what proxies ask to see whether anybody is there
            say(self._transport, 200, {"status": "ok", "model_path": MODEL, "served_model_name": MODEL})

    def _complete(self, body: dict[str, Any], chat: bool) -> None:
        text = " ".join(str(m["content"]) for m in body["messages"]) if chat else body["prompt"]
        prompt = WORDS.encode(text) if isinstance(text, str) else list(text)
        server, most = self._server, int(body.get("max_tokens") or 16)
        self._job_id = server.runtime.new_id("job")
        server.answers[self._job_id] = _Answer(self._transport, body, len(prompt), chat)
        sampling = Sampling(max_tokens=most, min_tokens=most, temperature=0.0)
        server.engine.submit(Job(self._job_id, prompt, len(prompt), most, sampling))


def say(transport: asyncio.Transport, status: int, what: object) -> None:
    """A whole answer at once."""
    body = _encode(what)
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    transport.write(head.encode() + body)


async def main(profile: Path) -> None:
    """Serve until ended."""
    runtime = RealRuntime()
    coefficients = read_coefficients(profile)
    engine = SimEngine(coefficients, LocalStore(STORE_TOKENS, coefficients.chunk_tokens), runtime)
    server = Server(engine, runtime)
    await engine.start(server.take)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    hold_to_parent()
    uvloop.run(main(Path(sys.argv[1])))
