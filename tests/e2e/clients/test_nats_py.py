"""nats-py and a MessagePack library, without any code of ours, against a running cluster."""

from typing import Any

import msgspec
import nats
import pytest

from tests.e2e.clients.conftest import Cluster
from tests.e2e.clients.truth import answer_to, reply_to

pytestmark = [pytest.mark.nats, pytest.mark.slow]
CHAT = {
    "type": "Chat",
    "model": "emulated",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
    "temperature": 0,
}
TEXT = {"type": "Generate", "model": "emulated", "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0}


async def asked(cluster: Cluster, subject: str, request: dict[str, Any]) -> dict[str, Any]:
    client = await nats.connect(cluster.nats_url)
    try:
        answer = await client.request(subject, msgspec.msgpack.encode(request), timeout=60)
        return msgspec.msgpack.decode(answer.data)
    finally:
        await client.close()


async def streamed(cluster: Cluster, subject: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    client = await nats.connect(cluster.nats_url)
    try:
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        await client.publish(subject, msgspec.msgpack.encode({**request, "stream": True}), reply=inbox)
        got: list[dict[str, Any]] = []
        while not got or got[-1]["type"] == "Chunk":
            got.append(msgspec.msgpack.decode((await answers.next_msg(timeout=60)).data))
        return got
    finally:
        await client.close()


async def test_a_completion_plain_and_streamed(cluster: Cluster) -> None:
    plain = await asked(cluster, "dopd.v1.generate", TEXT)
    *chunks, end = await streamed(cluster, "dopd.v1.generate", TEXT)
    assert plain["type"] == end["type"] == "Completion"
    assert plain["text"] == "".join(chunk["text"] for chunk in chunks) == answer_to([5, 6, 7], 8)
    assert end["seq"] == len(chunks) and plain["usage"] == end["usage"]


async def test_a_chat_plain_and_streamed(cluster: Cluster) -> None:
    plain = await asked(cluster, "dopd.v1.chat", CHAT)
    *chunks, end = await streamed(cluster, "dopd.v1.chat", CHAT)
    assert plain["text"] == "".join(chunk["text"] for chunk in chunks) == reply_to("Hello", 8)
    assert end["finish_reason"] == "length"


async def test_the_models(cluster: Cluster) -> None:
    (model,) = (await asked(cluster, "dopd.v1.models", {"type": "ModelsRequest"}))["models"]
    assert (model["model"], model["chat"]) == (cluster.model, True)


async def test_an_error_is_a_failure_with_the_fields_of_http_s(cluster: Cluster) -> None:
    failure = await asked(cluster, "dopd.v1.chat", {**CHAT, "temperature": -1})
    assert failure["type"] == "Failure"
    assert (failure["status"], failure["code"], failure["param"]) == (400, "invalid_request_error", "temperature")
