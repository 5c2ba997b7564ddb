"""How a streamed answer's events go out: at once, or together where the reader lags behind."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import msgspec

from dopd.errors import DeadlineExceeded
from dopd_gateway.answer import Answer
from dopd_gateway.event_stream import HELD_BYTES, EventStream
from dopd_gateway.openai_parse import COMPLETION, parse
from dopd_gateway.openai_write import Writer
from dopd_gateway.stream import Stream
from tests.text_side import MODEL, ids_of, pieces, tiny_vocabulary

ASK = parse(
    msgspec.json.encode({"model": MODEL, "prompt": "The quick", "stream": True, "max_tokens": 9999}), COMPLETION
)


class Client:
    """The ASGI side of one streamed answer: what was written, and in which pieces."""

    def __init__(self) -> None:
        self.stream = Stream("r-1", lambda enough: None, list)
        prompt = ids_of("The quick")
        answer = Answer(ASK.asked, prompt, self.stream, tiny_vocabulary())
        self.response = EventStream(answer, Writer(ASK, "r-1", 1.0, [prompt]), {})
        self.started, self.written, self.wrote = 0, list[bytes](), asyncio.Event()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.started += message["type"] == "http.response.start"
        if message.get("body"):
            self.written.append(message["body"])
            self.wrote.set()

    async def receive(self) -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def run(self) -> None:
        await asyncio.wait_for(self.response({}, self.receive, self.send), 10)


def events(written: bytes) -> int:
    return written.count(b"data: ")


async def test_tokens_that_wait_go_out_together_and_each_is_an_event() -> None:
    client, tokens = Client(), pieces(ids_of(" brown fox jumps"))
    for piece in tokens:
        client.stream.put(piece)
    await client.run()
    assert client.started == 1 and len(client.written) == 1
    assert events(client.written[0]) == len(tokens) + 1  # and the end mark


async def test_a_token_that_comes_alone_goes_out_at_once() -> None:
    client, tokens = Client(), pieces(ids_of(" brown fox jumps"))
    running = asyncio.create_task(client.run())
    for piece in tokens:
        client.wrote.clear()
        client.stream.put(piece)
        await asyncio.wait_for(client.wrote.wait(), 10)
    await running
    assert [events(each) for each in client.written] == [1] * (len(tokens) - 1) + [2]


async def test_an_error_behind_tokens_that_wait_comes_after_them() -> None:
    client = Client()
    client.stream.put(pieces(ids_of(" brown fox"))[0])
    client.stream.put(DeadlineExceeded("too late"))
    await client.run()
    assert client.started == 1 and events(b"".join(client.written)) == 2
    assert b"".join(client.written).index(b"choices") < b"".join(client.written).index(b"too late")


async def test_what_waits_is_bounded() -> None:
    client, tokens = Client(), pieces(ids_of(" fox") * 1000)
    for piece in tokens:
        client.stream.put(piece)
    await client.run()
    assert sum(map(events, client.written)) == len(tokens) + 1
    assert max(map(len, client.written)) < 2 * HELD_BYTES
