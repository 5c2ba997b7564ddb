"""Chats, several answers, log-probabilities and the token tools over HTTP, against a scripted token side."""

import json
from typing import Any

import httpx
import jsonschema
import pytest

from dopd.errors import Unavailable
from dopd.runtime.clock import RealRuntime
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.chat_template import ChatTemplate
from dopd_gateway.http import create_app
from dopd_gateway.openai_parse import CHAT, COMPLETION
from dopd_gateway.openapi import body_schema
from dopd_gateway.rate import Rates
from dopd_gateway.stream import Piece
from dopd_gateway.tokenizer import Tokenizer
from tests.integration.test_gateway_http import events_of, on_socket, openai_client, texts_of
from tests.text_side import EOS, MODEL, ScriptedGateway, ids_of, pieces, text_gateway, tiny_bpe

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SAID = " brown fox 🙂 jumps"
MESSAGES = [{"role": "user", "content": "The quick"}]
CHAT_BODY = {"model": MODEL, "messages": MESSAGES}
TEXT_BODY = {"model": MODEL, "prompt": "The quick", "max_tokens": 100}


def chatting() -> Tokenizer:
    return Tokenizer(tiny_bpe(), eos_token_ids=[EOS], template=ChatTemplate(TEMPLATE, {"bos_token": "<s>"}, "tiny"))


def scripted(text: str = SAID, **how: Any) -> ScriptedGateway:
    return ScriptedGateway(pieces(ids_of(text), **how))


def client_of(gateway: ScriptedGateway, rates: Rates | None = None) -> httpx.AsyncClient:
    api = TextGateway(gateway, chatting(), RealRuntime(), Slo(), 600.0, chat_max_tokens=500, rates=rates)
    transport = httpx.ASGITransport(app=create_app(api, 64 * 1024), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=10)


async def posted(gateway: ScriptedGateway, path: str, body: Any, **how: Any) -> httpx.Response:
    async with client_of(gateway) as client:
        return await client.post(path, json=body, **how)


async def test_a_chat_is_answered_with_a_message() -> None:
    gateway = scripted()
    got = (await posted(gateway, "/v1/chat/completions", CHAT_BODY)).json()
    assert got["object"] == "chat.completion"
    assert got["choices"] == [{
        "index": 0, "message": {"role": "assistant", "content": SAID, "refusal": None}, "logprobs": None,
        "finish_reason": "length",
    }]  # fmt: skip
    prompt = tiny_bpe().encode("<s>user: The quick\nassistant: ", add_special_tokens=False).ids
    assert gateway.inbounds[0].tokens == prompt and got["usage"]["prompt_tokens"] == len(prompt)
    assert gateway.inbounds[0].sampling.max_tokens == 500


async def test_the_answer_to_a_chat_is_as_long_as_the_context_has_room_for() -> None:
    gateway = scripted()
    gateway.max_model_len = 120
    await posted(gateway, "/v1/chat/completions", CHAT_BODY)
    assert gateway.inbounds[0].sampling.max_tokens == 120 - len(gateway.inbounds[0].tokens)
    await posted(gateway, "/v1/chat/completions", {**CHAT_BODY, "max_completion_tokens": 7})
    await posted(gateway, "/v1/chat/completions", {**CHAT_BODY, "max_tokens": 8})
    assert [inbound.sampling.max_tokens for inbound in gateway.inbounds[1:]] == [7, 8]
    gateway.max_model_len = len(gateway.inbounds[0].tokens)
    refused = await posted(gateway, "/v1/chat/completions", CHAT_BODY)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"


async def test_a_streamed_chat_tells_the_role_once_and_one_finish() -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await posted(scripted(sizes=[2, 3]), "/v1/chat/completions", CHAT_BODY | options)
    *events, usage, done = events_of(answer.text)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert done == "[DONE]" and {event["object"] for event in events} == {"chat.completion.chunk"}
    assert "".join(delta["content"] for delta in deltas) == SAID
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert usage["usage"]["completion_tokens"] == len(ids_of(SAID)) and usage["choices"] == []


async def test_a_model_without_a_template_does_not_chat() -> None:
    gateway = scripted()
    transport = httpx.ASGITransport(app=create_app(text_gateway(gateway), 64 * 1024))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post("/v1/chat/completions", json=CHAT_BODY)
        card = (await client.get("/v1/models")).json()["data"][0]
    assert answer.status_code == 400 and "no chat template" in answer.json()["error"]["message"]
    assert card["chat"] is False and "logprobs" in card["features"]


WRONG_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": ["Hello"]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"prompt": "x"}, "prompt"),
    ({"echo": False}, "echo"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"max_completion_tokens": 0}, "max_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": "3"}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"store": True}, "store"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"add_generation_prompt": 1}, "add_generation_prompt"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG_CHATS, ids=str)
async def test_a_chat_that_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    gateway = scripted()
    answer = await posted(gateway, "/v1/chat/completions", {**CHAT_BODY, **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and not gateway.streams, error


async def test_what_chat_clients_send_beside_changes_nothing() -> None:
    more = {
        "tools": [], "tool_choice": "none", "user": "u", "metadata": {"a": "b"}, "store": False, "n": 1,
        "parallel_tool_calls": True, "service_tier": "auto", "modalities": ["text"], "logprobs": False,
        "top_logprobs": None, "response_format": {"type": "text"}, "functions": None, "stop": None,
    }  # fmt: skip
    assert (await posted(scripted(), "/v1/chat/completions", {**CHAT_BODY, **more})).status_code == 200


@pytest.mark.parametrize("feature", ["logprobs", "penalties", "logit_bias", "json_schema"])
async def test_what_the_engine_does_not_do_is_refused_by_name(feature: str) -> None:
    asked: dict[str, tuple[str, Any]] = {
        "logprobs": ("logprobs", 0),
        "penalties": ("repetition_penalty", 1.1),
        "logit_bias": ("logit_bias", {"5": 1}),
        "json_schema": ("response_format", {"type": "json_object"}),
    }
    gateway, (field, value) = scripted(), asked[feature]
    gateway.features = tuple(each for each in gateway.features if each != feature)
    answer = await posted(gateway, "/v1/completions", {**TEXT_BODY, field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field
    gateway.features = (*gateway.features, feature)  # type: ignore[assignment]
    assert (await posted(gateway, "/v1/completions", {**TEXT_BODY, field: value})).status_code == 200


async def test_the_way_to_draw_reaches_the_token_side() -> None:
    gateway = scripted()
    more = {
        "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2,
        "logit_bias": {"7": -3}, "logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    }  # fmt: skip
    headers = {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "20", "x-priority": "4", "x-request-timeout-ms": "9000"}
    await posted(gateway, "/v1/completions", {**TEXT_BODY, **more}, headers=headers)
    inbound = gateway.inbounds[0]
    s = inbound.sampling
    assert (s.min_p, s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (0.1, 0.5, -0.5, 1.2)
    assert (s.logit_bias, s.logprobs, json.loads(s.json_schema)) == ({7: -3.0}, 2, {"type": "object"})
    assert (inbound.slo.ttft_s, inbound.slo.tpot_s, inbound.priority) == (0.25, 0.02, 4)


def with_logprobs(text: str) -> ScriptedGateway:
    rows = [((token, token, 5), (-0.5, -0.5, float("-inf"))) for token in ids_of(text)]
    made = [
        Piece(piece.index, piece.tokens, piece.times_s, piece.end, tuple(rows[piece.index : piece.index + 1]))
        for piece in pieces(ids_of(text))
    ]
    return ScriptedGateway(made)


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_a_completion_name_tokens_places_and_the_likeliest(stream: bool) -> None:
    answer = await posted(
        with_logprobs(" brown fox"), "/v1/completions", {**TEXT_BODY, "logprobs": 2, "stream": stream}
    )
    bodies = events_of(answer.text)[:-1] if stream else [answer.json()]
    rows = [body["choices"][0]["logprobs"] for body in bodies]
    got = {key: [each for row in rows for each in row[key]] for key in rows[0]}
    names = [tiny_bpe().decode([token]) for token in ids_of(" brown fox")]
    assert got["tokens"] == names and got["token_logprobs"] == [-0.5] * len(names)
    assert got["text_offset"] == [len("".join(names[:place])) for place in range(len(names))]
    assert got["top_logprobs"][0] == {names[0]: -0.5, tiny_bpe().decode([5]): -9999.0}


async def test_logprobs_of_a_chat_have_bytes_and_the_likeliest() -> None:
    body = {**CHAT_BODY, "logprobs": True, "top_logprobs": 1}
    got = (await posted(with_logprobs(" brown"), "/v1/chat/completions", body)).json()
    content = got["choices"][0]["logprobs"]["content"]
    name = tiny_bpe().decode(ids_of(" brown")[:1])
    own = {"token": name, "logprob": -0.5, "bytes": list(name.encode())}
    assert content[0] == {**own, "top_logprobs": [own]} and len(content) == len(ids_of(" brown"))


async def test_several_answers_to_several_prompts_are_choices_in_order() -> None:
    gateway = scripted()
    body = {**TEXT_BODY, "prompt": ["The quick", ids_of(" brown"), "lazy"], "n": 2, "echo": True, "seed": 5}
    got = (await posted(gateway, "/v1/completions", body)).json()
    said = ["The quick", " brown", "lazy"]
    assert [c["index"] for c in got["choices"]] == list(range(6))
    assert [c["text"] for c in got["choices"]] == [said[place // 2] + SAID for place in range(6)]
    prompts = [ids_of("The quick"), ids_of(" brown"), ids_of("lazy")]
    assert [inbound.tokens for inbound in gateway.inbounds] == [prompts[place // 2] for place in range(6)]
    assert [inbound.sampling.seed for inbound in gateway.inbounds] == [5, 6, 5, 6, 5, 6]
    assert got["usage"] == {
        "prompt_tokens": sum(map(len, prompts)), "completion_tokens": 6 * len(ids_of(SAID)),
        "total_tokens": sum(map(len, prompts)) + 6 * len(ids_of(SAID)),
    }  # fmt: skip


async def test_several_streamed_answers_tell_which_event_is_whose() -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "n": 3}
    *events, usage, done = events_of((await posted(scripted(), "/v1/completions", {**TEXT_BODY, **options})).text)
    choices = [event["choices"][0] for event in events]
    for index in range(3):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == SAID
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]
    assert done == "[DONE]" and usage["usage"]["completion_tokens"] == 3 * len(ids_of(SAID))
    assert len({event["id"] for event in events}) == 1
    assert [event["usage"]["completion_tokens"] for event in events] == list(range(1, 3 * len(ids_of(SAID)) + 1))


@pytest.mark.parametrize("stream", [False, True])
async def test_one_of_several_that_fails_ends_all(stream: bool) -> None:
    gateway = ScriptedGateway([*pieces(ids_of(SAID), end=None), 0.05, Unavailable("lost")])
    taken = gateway.open

    def then_without_end(inbound: Any) -> Any:
        stream = taken(inbound)
        gateway.script = pieces(ids_of(SAID), end=None)
        return stream

    gateway.open = then_without_end  # type: ignore[method-assign]
    answer = await posted(gateway, "/v1/completions", {**TEXT_BODY, "n": 3, "stream": stream})
    error = events_of(answer.text)[-1] if stream else answer.json()
    assert error["error"]["message"] == "lost"
    assert [each.cancelled.is_set() for each in gateway.streams] == [False, True, True]


async def test_when_only_some_find_room_none_stays() -> None:
    gateway = scripted()
    taken = gateway.open

    def open_two(inbound: Any) -> Any:
        if len(gateway.streams) == 2:
            raise Unavailable("the queue is full")
        return taken(inbound)

    gateway.open = open_two  # type: ignore[method-assign]
    answer = await posted(gateway, "/v1/completions", {**TEXT_BODY, "n": 3})
    assert answer.status_code == 503 and [each.cancelled.is_set() for each in gateway.streams] == [True, True]


async def test_an_echo_of_token_ids_is_their_text_and_comes_first() -> None:
    body = {**TEXT_BODY, "prompt": ids_of("The quick"), "echo": True, "stream": True}
    *events, _ = events_of((await posted(scripted(), "/v1/completions", body)).text)
    assert texts_of(events) == "The quick" + SAID and events[0]["choices"][0]["text"].startswith("The quick")


async def test_text_and_ids_are_told_of_each_other() -> None:
    gateway = scripted()
    text = "The quick brown 🙂"
    got = (await posted(gateway, "/tokenize", {"model": MODEL, "prompt": text})).json()
    assert got == {"count": len(ids_of(text)), "max_model_len": 100_000, "tokens": ids_of(text)}
    back = (await posted(gateway, "/detokenize", {"model": MODEL, "tokens": got["tokens"]})).json()
    assert back == {"prompt": text}
    chat = (await posted(gateway, "/tokenize", {"model": MODEL, "messages": MESSAGES})).json()
    await posted(gateway, "/v1/chat/completions", CHAT_BODY)
    assert chat["tokens"] == gateway.inbounds[0].tokens


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": "x"}, 400, "model"),
        ("/tokenize", {"model": MODEL}, 400, "prompt"),
        ("/tokenize", {"model": MODEL, "prompt": 5}, 400, "prompt"),
        ("/tokenize", {"model": MODEL, "prompt": "x", "y": 1}, 400, "y"),
        ("/tokenize", {"model": MODEL, "messages": []}, 400, "messages"),
        ("/tokenize", {"model": MODEL, "messages": MESSAGES, "prompt": "x"}, 400, "prompt"),
        ("/tokenize", {"model": "other", "prompt": "x"}, 404, "model"),
        ("/detokenize", {"model": MODEL}, 400, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": ["a"]}, 400, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": [400]}, 400, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"model": "other", "tokens": [1]}, 404, "model"),
    ],
    ids=str,
)
async def test_a_wrong_question_about_tokens_is_refused_by_name(path: str, body: Any, status: int, param: str) -> None:
    answer = await posted(scripted(), path, body)
    assert answer.status_code == status and answer.json()["error"]["param"] == param


async def test_who_asks_too_often_is_told_when_to_come_back_and_others_are_served() -> None:
    async with client_of(scripted(), Rates(0.1, 2)) as client:
        mine, other = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
        statuses = [(await client.post("/v1/completions", json=TEXT_BODY, headers=mine)).status_code for _ in range(3)]
        last = await client.post("/v1/chat/completions", json=CHAT_BODY, headers=mine)
        others = [(await client.post("/v1/completions", json=TEXT_BODY, headers=h)).status_code for h in (other, {})]
    assert statuses == [200, 200, 429] and others == [200, 200]
    assert last.status_code == 429 and 5 <= int(last.headers["retry-after"]) <= 10
    assert last.json()["error"]["type"] == "rate_limit_error"


async def test_the_answer_names_request_and_trace() -> None:
    headers = {"x-request-id": "mine", "traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    for stream in (False, True):
        answer = await posted(scripted(), "/v1/completions", {**TEXT_BODY, "stream": stream}, headers=headers)
        assert answer.headers["x-request-id"] == "mine" and answer.headers["x-trace-id"] == "ab" * 16


async def test_the_openai_client_chats() -> None:
    gateway = scripted()
    async with on_socket(gateway, chatting()) as url, openai_client(url) as client:
        plain = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True, n=2
        )
        chunks = [chunk async for chunk in stream]
    assert plain.choices[0].message.content == SAID and plain.choices[0].message.role == "assistant"
    for index in range(2):
        mine = [c.choices[0].delta.content for c in chunks if c.choices[0].index == index]
        assert "".join(text or "" for text in mine) == SAID


async def test_the_document_describes_what_is_checked() -> None:
    async with client_of(scripted()) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    posts = {path for path, item in document["paths"].items() if "post" in item}
    assert posts == {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}
    schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == body_schema(COMPLETION, MODEL)
    for form, body in ((COMPLETION, TEXT_BODY), (CHAT, CHAT_BODY)):
        check = jsonschema.Draft202012Validator(body_schema(form, MODEL))
        assert check.is_valid({**body, "top_p": 0.5, "stop": ["a"], "user": "u", "seed": None, "n": 2})
        for wrong in ({"top_p": 0}, {"stop": ["a"] * 5}, {"x": 1}, {"n": 0}, {"logit_bias": {"5": 200}}, {"seed": "1"}):
            assert not check.is_valid({**body, **wrong}), wrong
