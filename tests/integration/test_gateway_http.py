"""The gateway's HTTP side against a scripted token side: in process, and on a real socket with the real client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from dopd.errors import BadRequest, DeadlineExceeded, RequestError, TooManyRequests, Unavailable
from dopd_gateway.http import create_app
from dopd_gateway.http_server import HttpServer
from dopd_gateway.tokenizer import Tokenizer
from tests.text_side import EOS, MODEL, ScriptedGateway, ids_of, pieces, text_gateway

LIMIT_BYTES = 64 * 1024
BODY = {"model": MODEL, "prompt": "The quick", "max_tokens": 100}
SAID = " brown fox 🙂 jumps"


def scripted(text: str = SAID, **how: Any) -> ScriptedGateway:
    return ScriptedGateway(pieces(ids_of(text), **how))


def in_process(gateway: ScriptedGateway) -> httpx.AsyncClient:
    app = create_app(text_gateway(gateway), LIMIT_BYTES)
    # A bug in the app is an answer here, as it is on a socket.
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=10)


@asynccontextmanager
async def on_socket(gateway: ScriptedGateway, words: Tokenizer | None = None) -> AsyncIterator[str]:
    server = HttpServer(create_app(text_gateway(gateway, words), LIMIT_BYTES), "127.0.0.1", 0, stop_timeout_s=1)
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


def events_of(body: str) -> list[Any]:
    assert body.endswith("\n\n")
    lines = body.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [d if (d := line.removeprefix("data: ")) == "[DONE]" else json.loads(d) for line in lines]


def texts_of(events: list[Any]) -> str:
    return "".join(e["choices"][0]["text"] for e in events if e != "[DONE]" and e["choices"])


async def test_a_plain_completion_has_text_finish_reason_and_usage() -> None:
    gateway = scripted()
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json=BODY)
    got = answer.json()
    assert answer.status_code == 200 and answer.headers["x-request-id"] == got["id"] == "r-1"
    assert got["object"] == "text_completion" and got["model"] == MODEL
    assert got["choices"] == [{"index": 0, "text": SAID, "logprobs": None, "finish_reason": "length"}]
    prompt, said = len(ids_of("The quick")), len(ids_of(SAID))
    assert got["usage"] == {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


async def test_a_stream_is_events_with_one_finish_and_an_end_mark() -> None:
    async with in_process(scripted(sizes=[2, 3])) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done = events_of(answer.text)
    assert done == "[DONE]" and texts_of(events) == SAID
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * (len(events) - 1) + ["length"]
    assert not any("usage" in e for e in events)


async def test_usage_comes_as_a_last_event_without_choices_when_asked_for() -> None:
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    async with in_process(scripted()) as client:
        *events, usage, done = events_of((await client.post("/v1/completions", json=body)).text)
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(ids_of(SAID))
    assert all(e["usage"] is None for e in events)


async def test_token_ids_are_taken_as_prompt_and_given_back_on_demand() -> None:
    gateway = scripted()
    body = {**BODY, "prompt": [5, 6, 7], "return_token_ids": True}
    async with in_process(gateway) as client:
        plain = (await client.post("/v1/completions", json=body)).json()["choices"][0]
        *events, _ = events_of((await client.post("/v1/completions", json={**body, "stream": True})).text)
    assert gateway.inbounds[0].tokens == plain["prompt_token_ids"] == [5, 6, 7]
    choices = [e["choices"][0] for e in events]
    assert plain["token_ids"] == [t for c in choices for t in c["token_ids"]] == ids_of(SAID)
    assert choices[0]["prompt_token_ids"] == [5, 6, 7] and "prompt_token_ids" not in choices[1]


async def test_body_fields_reach_the_token_side() -> None:
    gateway = scripted()
    extra = {"min_tokens": 2, "temperature": 0, "top_p": 0.5, "top_k": 9, "seed": 4, "ignore_eos": True, "priority": 3}
    async with in_process(gateway) as client:
        await client.post("/v1/completions", json={**BODY, **extra, "timeout_s": 5})
    inbound, s = gateway.inbounds[0], gateway.inbounds[0].sampling
    assert (s.max_tokens, s.min_tokens, s.temperature, s.top_p, s.top_k) == (100, 2, 0.0, 0.5, 9)
    assert (s.seed, s.ignore_eos, inbound.priority) == (4, True, 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_the_work(stream: bool) -> None:
    gateway = scripted(" brown STOP fox", sizes=[3], end=None)
    body = {**BODY, "stop": "STOP", "stream": stream}
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json=body)
    choices = [e["choices"][0] for e in events_of(answer.text)[:-1]] if stream else answer.json()["choices"]
    assert "".join(c["text"] for c in choices) == " brown " and choices[-1]["finish_reason"] == "stop"
    assert gateway.streams[0].cancelled.is_set()


async def test_a_client_that_sends_what_changes_nothing_is_served() -> None:
    no_ops = {
        "n": 1,
        "best_of": 1,
        "echo": False,
        "logprobs": None,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "user": "u",
        "suffix": None,
        "logit_bias": None,
        "repetition_penalty": 1.0,
        "stop": None,
        "max_tokens": None,
    }
    gateway = scripted()
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json={**BODY, **no_ops})
    assert answer.status_code == 200 and gateway.inbounds[0].sampling.max_tokens == 16


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": True}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"temprature": 1}, "temprature"),
    ({"type": "Generate"}, "type"),
    ({"return_tokens": True}, "return_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1_000_000}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"stop": ["a", 3]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [99_999]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": ["a", "b"], "n": 100}, "n"),
    ({"n": 129}, "n"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 1, "echo": True}, "echo"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"min_p": 1.5}, "min_p"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ({"response_format": {"type": "text", "x": 1}}, "response_format"),
    ({"response_format": "json"}, "response_format"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"min_tokens": 200}, "min_tokens"),
    ({"model": None}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": 1}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"return_token_ids": 1}, "return_token_ids"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    gateway = scripted()
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json={**BODY, **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert param.rsplit(".", maxsplit=1)[-1] in error["message"] and not gateway.streams


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", b"", 404, "not_found"),
        ("GET", "/v1/models/other", b"", 404, "model_not_found"),
        ("POST", "/v1/completions", b'{"model": "other", "prompt": "x"}', 404, "model_not_found"),
        ("GET", "/v1/completions", b"", 405, "method_not_allowed"),
        ("POST", "/v1/completions", b"", 400, "invalid_request_error"),
        ("POST", "/v1/completions", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/completions", b"[1]", 400, "invalid_request_error"),
        ("POST", "/v1/completions", b"\xff\xfe", 400, "invalid_request_error"),
        ("POST", "/v1/completions", b'{"prompt": "\\ud800"}', 400, "invalid_request_error"),
        ("POST", "/v1/completions", b"[" * 50_000, 400, "invalid_request_error"),
    ],
)
async def test_every_error_has_the_shape_of_openai(method: str, path: str, body: bytes, status: int, code: str) -> None:
    async with in_process(scripted()) as client:
        answer = await client.request(method, path, content=body)
    assert answer.status_code == status and answer.headers["content-type"] == "application/json"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


async def test_a_body_above_the_limit_is_refused_with_both_sizes() -> None:
    async def in_parts() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 20_000

    async with on_socket(scripted()) as url, httpx.AsyncClient(base_url=url, timeout=10) as client:
        whole = await client.post("/v1/completions", content=b"x" * 3_000_000)
        parts = await client.post("/v1/completions", content=in_parts())
        after = await client.post("/v1/completions", json=BODY)
    assert whole.status_code == parts.status_code == 413
    assert "3000000 bytes" in whole.json()["error"]["message"] and str(LIMIT_BYTES) in whole.json()["error"]["message"]
    assert str(LIMIT_BYTES) in parts.json()["error"]["message"]
    assert after.status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code", "after_s"),
    [
        (TooManyRequests("the queue is full"), 429, "rate_limit_exceeded", "1"),
        (TooManyRequests("too fast", retry_after_s=2.4), 429, "rate_limit_exceeded", "3"),
        (Unavailable("no worker"), 503, "unavailable", "1"),
    ],
)
async def test_what_may_work_later_says_when(error: RequestError, status: int, code: str, after_s: str) -> None:
    gateway = scripted()
    gateway.refuse = error
    async with in_process(gateway) as client:
        answers = [await client.post("/v1/completions", json={**BODY, "stream": s}) for s in (False, True)]
    for answer in answers:
        assert answer.status_code == status and answer.headers["retry-after"] == after_s
        assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_its_own_status(stream: bool) -> None:
    gateway = ScriptedGateway([DeadlineExceeded("too late")])
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": stream})
    assert answer.status_code == 504 and answer.json()["error"]["message"] == "too late"


async def test_an_error_in_mid_stream_is_the_last_event() -> None:
    gateway = ScriptedGateway([*pieces(ids_of(SAID), end=None), BadRequest("lost")])
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": True})
    *events, last = events_of(answer.text)
    assert answer.status_code == 200 and texts_of(events) == SAID
    assert last["error"]["message"] == "lost"


async def test_a_bug_is_a_500_that_tells_no_details() -> None:
    gateway = scripted()
    gateway.refuse = ZeroDivisionError("secret")
    async with in_process(gateway) as client:
        answer = await client.post("/v1/completions", json=BODY)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


async def test_health_tells_that_the_process_lives_and_ready_that_a_worker_serves() -> None:
    gateway = scripted()
    async with in_process(gateway) as client:
        gateway.serving = False
        assert (await client.get("/health")).status_code == 200
        not_ready = await client.get("/ready")
        gateway.serving = True
        assert (await client.get("/ready")).json() == {"status": "ready"}
    assert not_ready.status_code == 503 and "no worker" in not_ready.json()["error"]["message"]


def openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=10)


async def test_the_openai_client_completes_streams_and_lists() -> None:
    async with on_socket(scripted(sizes=[2, 2])) as url, openai_client(url) as client:
        plain = await client.completions.create(model=MODEL, prompt="The quick", max_tokens=100)
        stream = await client.completions.create(
            model=MODEL, prompt="The quick", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        models = [model.id async for model in client.models.list()]
        card = await client.models.retrieve(MODEL)
    assert plain.choices[0].text == SAID and plain.usage is not None
    assert "".join(c.choices[0].text for c in chunks if c.choices) == SAID
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage == plain.usage
    assert models == [card.id] == [MODEL]


async def test_the_openai_client_raises_our_errors() -> None:
    gateway = ScriptedGateway([*pieces(ids_of(SAID), end=None), DeadlineExceeded("too late")])
    async with on_socket(gateway) as url, openai_client(url) as client:
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.completions.create(model=MODEL, prompt="x", temperature=-2)
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="x")
        stream = await client.completions.create(model=MODEL, prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="too late"):
            async for _ in stream:
                pass


async def raw(url: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request as curl would send it, on a connection of our own."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("sent", [0, 3])
async def test_a_client_gone_in_mid_stream_cancels_the_work(sent: int) -> None:
    gateway = ScriptedGateway(pieces(ids_of(SAID)[:sent], end=None))
    async with on_socket(gateway) as url:
        reader, writer = await raw(url, {**BODY, "stream": True})
        for _ in range(sent):
            await asyncio.wait_for(reader.readuntil(b"data: "), 5)
        await asyncio.wait_for(gateway.opened.wait(), 5)
        assert not gateway.streams[0].cancelled.is_set()
        writer.transport.abort()
        await asyncio.wait_for(gateway.streams[0].cancelled.wait(), 5)


async def test_a_client_gone_while_it_waits_for_a_plain_answer_cancels_the_work() -> None:
    gateway = ScriptedGateway(pieces(ids_of(SAID), end=None))
    async with on_socket(gateway) as url:
        _, writer = await raw(url, BODY)
        await asyncio.wait_for(gateway.opened.wait(), 5)
        writer.close()
        await asyncio.wait_for(gateway.streams[0].cancelled.wait(), 5)


async def test_events_arrive_when_their_tokens_do() -> None:
    tokens = ids_of(" brown fox")
    first, rest = pieces(tokens, sizes=[1, 99])
    gateway = ScriptedGateway([first, 0.3, rest])
    async with on_socket(gateway) as url:
        reader, writer = await raw(url, {**BODY, "stream": True})
        await asyncio.wait_for(reader.readuntil(b"data: "), 5)
        begin = asyncio.get_running_loop().time()
        await asyncio.wait_for(reader.readuntil(b"[DONE]"), 5)
        assert asyncio.get_running_loop().time() - begin > 0.2
        writer.close()


async def test_a_server_that_stops_lets_a_stream_finish() -> None:
    gateway = ScriptedGateway([*pieces(ids_of(" brown"), end=None), 0.3, *pieces([EOS], end="stop")])
    server = HttpServer(create_app(text_gateway(gateway), LIMIT_BYTES), "127.0.0.1", 0)
    await server.start()
    reader, writer = await raw(f"http://127.0.0.1:{server.port}", {**BODY, "stream": True})
    await asyncio.wait_for(reader.readuntil(b"data: "), 5)
    await asyncio.wait_for(server.stop(), 10)
    rest = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert b"[DONE]" in rest and b'"finish_reason":"stop"' in rest


async def test_usage_comes_with_each_event_when_asked_for_and_counts_tokens_without_text() -> None:
    """Some of these tokens complete no character, and some events have several tokens."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    said = " fox ツ 🦊 dog"
    async with in_process(scripted(said, sizes=[2, 3])) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": True, "stream_options": options})
    *events, usage, _ = events_of(answer.text)
    count, prompt = len(ids_of(said)), len(ids_of("The quick"))
    assert [e["usage"]["completion_tokens"] for e in events] == [2, *range(5, count + 1)]
    assert any(not e["choices"][0]["text"] for e in events)
    assert all(e["usage"]["prompt_tokens"] == prompt for e in events)
    assert usage["choices"] == [] and usage["usage"] == events[-1]["usage"]


async def test_usage_with_each_event_needs_usage_at_all_as_in_vllm() -> None:
    body = {**BODY, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    async with in_process(scripted()) as client:
        *events, _ = events_of((await client.post("/v1/completions", json=body)).text)
    assert not any("usage" in e for e in events) and texts_of(events) == SAID
