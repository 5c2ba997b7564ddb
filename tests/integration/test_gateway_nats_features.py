"""What the HTTP side does, the NATS side does, and refuses it in the same words."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from dopd.bus.memory import MemoryBroker, MemoryBus
from dopd.errors import RequestError
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.chat_template import ChatTemplate
from dopd_gateway.http import create_app
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.tokenizer import Tokenizer
from dopd_proto.asked import Chat, Choice, Chunk, Completion, Generate, ModelsReply, ModelsRequest
from dopd_proto.base import unpack_tokens
from dopd_proto.subjects import CHAT, GENERATE, MODELS
from tests.integration.test_gateway_chat import MESSAGES, SAID, TEMPLATE, with_logprobs
from tests.integration.test_gateway_nats import streamed
from tests.text_side import EOS, MODEL, ScriptedGateway, ids_of, pieces, tiny_bpe

COMMON: dict[str, Any] = {"model": MODEL, "max_tokens": 100}


def both(gateway: ScriptedGateway, test: Any) -> None:
    """A bus and an HTTP client of one gateway."""

    async def main() -> None:
        template = ChatTemplate(TEMPLATE, {"bos_token": "<s>"}, "tiny")
        words = Tokenizer(tiny_bpe(), eos_token_ids=[EOS], template=template)
        broker = MemoryBroker()
        api = TextGateway(gateway, words, VirtualRuntime(), Slo(), 600.0)
        nats = NatsApi(broker.connect("gateway"), api)
        await nats.start()
        transport = httpx.ASGITransport(app=create_app(api, 1 << 20), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:
            await test(broker.connect("client"), client)
        await nats.stop(1.0)

    run_virtual(main())


def scripted(**how: Any) -> ScriptedGateway:
    return ScriptedGateway(pieces(ids_of(SAID), **how))


def test_a_chat_is_answered_over_nats_as_over_http() -> None:
    gateway = scripted()

    async def test(bus: MemoryBus, client: httpx.AsyncClient) -> None:
        got = await bus.request(CHAT.at(), Chat(**COMMON, messages=MESSAGES), (Completion,), 30)
        there = (await client.post("/v1/chat/completions", json={**COMMON, "messages": MESSAGES})).json()
        assert got.text == there["choices"][0]["message"]["content"] == SAID
        assert got.usage.prompt_tokens == there["usage"]["prompt_tokens"]
        assert gateway.inbounds[0].tokens == gateway.inbounds[1].tokens
        *chunks, end = await streamed(bus, Chat(**COMMON, messages=MESSAGES, stream=True))
        assert "".join(chunk.text for chunk in chunks) == SAID and end.seq == len(chunks)
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]

    both(gateway, test)


def test_several_answers_have_their_choices() -> None:
    async def test(bus: MemoryBus, _: httpx.AsyncClient) -> None:
        ask = Generate(**COMMON, prompt=["The quick", [5, 6]], n=2, echo=True, return_tokens=True)
        got = await bus.request(GENERATE.at(), ask, (Completion,), 30)
        first = Choice(choice=0, finish_reason=got.finish_reason, text=got.text, tokens=got.tokens)
        choices = [first, *got.more]
        echoed = ["The quick"] * 2 + [tiny_bpe().decode([5, 6], skip_special_tokens=False)] * 2
        assert [(c.choice, c.text) for c in choices] == [(n, text + SAID) for n, text in enumerate(echoed)]
        assert all(unpack_tokens(choice.tokens) == ids_of(SAID) for choice in choices)
        assert got.usage.completion_tokens == 4 * len(ids_of(SAID))
        *chunks, end = await streamed(bus, Generate(**COMMON, prompt="x", n=2, stream=True))
        assert {chunk.choice for chunk in chunks} == {0, 1} and end.seq == len(chunks) and not end.more
        for choice in (0, 1):
            assert "".join(chunk.text for chunk in chunks if chunk.choice == choice) == SAID

    both(scripted(), test)


def test_logprobs_come_with_their_tokens() -> None:
    async def test(bus: MemoryBus, _: httpx.AsyncClient) -> None:
        got = await bus.request(GENERATE.at(), Generate(**COMMON, prompt="x", logprobs=1), (Completion,), 30)
        *chunks, _ = await streamed(bus, Generate(**COMMON, prompt="x", logprobs=1, stream=True))
        assert [row.token_id for row in got.logprobs] == ids_of(" brown fox")
        assert [row for chunk in chunks if isinstance(chunk, Chunk) for row in chunk.logprobs] == list(got.logprobs)
        assert got.logprobs[0].top[0].logprob == got.logprobs[0].logprob == -0.5

    both(with_logprobs(" brown fox"), test)


def test_the_models_are_told_as_over_http() -> None:
    async def test(bus: MemoryBus, client: httpx.AsyncClient) -> None:
        [card] = (await bus.request(MODELS.at(), ModelsRequest(), (ModelsReply,), 30)).models
        there = (await client.get(f"/v1/models/{MODEL}")).json()
        assert (card.model, card.max_model_len, list(card.features), card.chat) == (
            there["id"], there["max_model_len"], there["features"], there["chat"],
        )  # fmt: skip

    both(scripted(), test)


REFUSED: list[dict[str, Any]] = [
    {"model": "other"},
    {"max_tokens": 0},
    {"max_tokens": 10**9},
    {"temperature": -1.0},
    {"n": 0},
    {"min_p": 2.0},
    {"logprobs": 21},
    {"presence_penalty": 3.0},
    {"repetition_penalty": 0.0},
    {"stop": ["a"] * 5},
    {"stop": [""]},
    {"seed": 2**63},
    {"timeout_s": -1.0},
    {"logit_bias": {"5": 101.0}},
    {"logit_bias": {"999999": 1.0}},
    {"response_format": {"type": "yaml"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": "y" * 70_000}}}},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [1, "a"]},
    {"prompt": [999_999]},
    {"prompt": ["a"] * 129},
    {"echo": True, "logprobs": 1},
]


@pytest.mark.parametrize("wrong", REFUSED, ids=lambda wrong: json.dumps(wrong)[:60])
def test_a_refusal_has_the_same_words_over_both(wrong: dict[str, Any]) -> None:
    body = {**COMMON, "prompt": "x", **wrong}

    async def test(bus: MemoryBus, client: httpx.AsyncClient) -> None:
        there = await client.post("/v1/completions", json=body)
        fields = {**body, "logit_bias": {int(t): b for t, b in body.get("logit_bias", {}).items()}}
        with pytest.raises(RequestError) as caught:
            await bus.request(GENERATE.at(), msgspec.convert(fields, Generate), (Completion,), 30)
        error = there.json()["error"]
        assert (caught.value.status, caught.value.code) == (there.status_code, error["code"])
        assert (caught.value.message, caught.value.param) == (error["message"], error["param"])

    both(scripted(), test)
