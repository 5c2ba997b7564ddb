"""The API over real engines, with prefill and decode apart: answers are those of one vLLM engine alone."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from dopd.engine.contract import Job
from dopd_gateway.likely import Likely
from dopd_gateway.tokenizer import Tokenizer
from dopd_proto.request import Sampling
from tests.e2e.live import Live
from tests.engine_rig import Rig, job

pytestmark = [pytest.mark.nats, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

TEXT = "The workers of a cluster share the store, and the gateway "
FEW = {str(token): 60 for token in range(10, 22)}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "one token": {"temperature": 0, "max_tokens": 1},
    "penalties": {
        "temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.9, "repetition_penalty": 1.1,
        "logit_bias": FEW,
    },
    "seed": {"temperature": 1, "seed": 3, "top_p": 0.9, "min_p": 0.01},
    "seed and penalties": {"temperature": 1, "seed": 8, "frequency_penalty": 1.0},
    "schema": {"temperature": 0, "response_format": FORMAT, "ignore_eos": False, "max_tokens": 60},
    "least length": {"temperature": 0, "min_tokens": 20, "ignore_eos": False, "logit_bias": {"2": 50, **FEW}},
}  # fmt: skip


async def asked(clients: Live, path: str, body: dict[str, Any]) -> dict[str, Any]:
    whole = {"model": clients.model, "max_tokens": 30, "ignore_eos": True, "return_token_ids": True, **body}
    async with httpx.AsyncClient(base_url=clients.url, timeout=60) as client:
        answer = await client.post(path, json=whole)
    assert answer.status_code == 200, answer.text
    return answer.json()


def as_job(prompt: list[int], body: dict[str, Any]) -> Job:
    """What one engine is to do, from the body alone."""
    fields = {"max_tokens": 30, "ignore_eos": True, **body}
    wanted = fields.pop("response_format", None)
    fields["json_schema"] = json.dumps(wanted["json_schema"]["schema"]) if wanted else ""
    fields["logit_bias"] = {int(token): float(bias) for token, bias in fields.get("logit_bias", {}).items()}
    return job(prompt, fields["max_tokens"], sampling=Sampling(**fields))


@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_are_those_of_one_engine(clients: Live, alone: Rig, kind: str) -> None:
    text = f"{kind}: {TEXT * 5}"
    answer = await asked(clients, "/v1/completions", {"prompt": text, **KINDS[kind]})
    choice = answer["choices"][0]
    done = await alone.one(as_job(choice["prompt_token_ids"], KINDS[kind]))
    assert choice["token_ids"] == done.tokens and choice["finish_reason"] == done.end
    assert answer["usage"]["completion_tokens"] == len(done.tokens)
    if kind == "schema" and done.end == "stop":
        assert set(json.loads(choice["text"])) >= {"a", "b"}


async def test_a_chat_has_the_models_template_and_its_logprobs(clients: Live, alone: Rig, model: Path) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT * 3}]
    body = {"messages": messages, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    answer = await asked(clients, "/v1/chat/completions", body)
    choice, words = answer["choices"][0], Tokenizer.load(str(model))
    text = f"<s>system: Be short.\nuser: {TEXT * 3}\nassistant: "
    assert choice["prompt_token_ids"] == words.encode(text, special=False)
    each = as_job(choice["prompt_token_ids"], {"temperature": 0, "logprobs": 2})
    done = await alone.one(each)
    assert choice["token_ids"] == done.tokens
    rows = [row for output in alone.outputs[each.job_id] for row in output.logprobs]
    content, expected = choice["logprobs"]["content"], Likely(words, 2).named(rows)
    assert [token["token"] for token in content] == [each.token for each in expected]
    assert [token["logprob"] for token in content] == pytest.approx([each.logprob for each in expected], abs=1e-3)
    assert [[top["token"] for top in token["top_logprobs"]] for token in content] == [
        [top.token for top in each.top] for each in expected
    ]


async def test_a_stop_string_over_the_hand_over_ends_text_and_count(clients: Live) -> None:
    whole = await asked(clients, "/v1/completions", {"prompt": TEXT, "temperature": 0})
    said, ids = whole["choices"][0]["text"], whole["choices"][0]["token_ids"]
    for begin in (0, 1, 2, len(said) // 2):  # the first token is the prefill worker's
        stop = said[begin : begin + 4]
        cut = await asked(clients, "/v1/completions", {"prompt": TEXT, "temperature": 0, "stop": stop})
        choice = cut["choices"][0]
        assert choice["text"] == said[: said.index(stop)] and choice["finish_reason"] == "stop"
        count = cut["usage"]["completion_tokens"]
        assert choice["token_ids"] == ids[:count] and count <= len(ids)
