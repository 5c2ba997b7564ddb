"""Each bad payload gets the failure that says why, and the next good one is served: over a real broker, against a
gateway with the emulated engine's vocabulary."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats
import nats.errors
import pytest
from nats.aio.client import Client

from dopd.bus.nats_bus import NatsBus
from dopd.engine.sim.tokens import VOCABULARY
from dopd.runtime.clock import RealRuntime
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.number_tokenizer import NumberTokenizer
from tests.bad_nats import CASES, CHAT, CHATS, CONTEXT, GENERATE, MODELS, NOBODY, TEXT, Case, pack
from tests.nats_server import NatsServer
from tests.text_side import ScriptedGateway, pieces

pytestmark = pytest.mark.nats
LIMIT_S = 30
GOOD = {GENERATE: TEXT, CHATS: CHAT, MODELS: {"type": "ModelsRequest"}}


@asynccontextmanager
async def served(server: NatsServer) -> AsyncIterator[tuple[Client, ScriptedGateway]]:
    gateway = ScriptedGateway(pieces([5, 6]), max_model_len=CONTEXT)
    gateway.model = "emulated"
    bus = await NatsBus.connect(server.url, "gateway")
    bus.on_fault(lambda _: None)
    api = NatsApi(bus, TextGateway(gateway, NumberTokenizer(VOCABULARY), RealRuntime(), Slo(), timeout_s=600.0))
    await api.start()
    client = await nats.connect(server.url)
    yield client, gateway
    await client.close()
    await api.stop(1.0)
    await bus.drain()


async def asked(client: Client, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await client.request(subject, payload, timeout=LIMIT_S, headers=headers)
    return msgspec.msgpack.decode(answer.data)


async def serves(client: Client, subject: str = GENERATE) -> bool:
    return (await asked(client, subject, pack(GOOD[subject])))["type"] in ("Completion", "ModelsReply")


async def wrong(case: Case, client: Client) -> str:
    """What is wrong with the answer; empty when nothing is."""
    got = await asked(client, case.subject, case.payload, dict(case.headers) or None)
    if got["type"] != "Failure":
        return str(got)[:300]
    if (got["status"], got["code"], got.get("param")) != (case.status, case.code, case.param):
        return str(got)[:300]
    if case.says not in got["message"] or not 0 < len(got["message"]) < 1000:
        return f"a message of {len(got['message'])} characters: {got['message'][:300]}"
    return "" if await serves(client, case.subject) else "the next one was not served"


async def test_a_bad_payload_gets_a_failure_with_its_reason_and_the_next_is_served(nats_server: NatsServer) -> None:
    async with served(nats_server) as (client, gateway):
        found = {case.name: text for case in CASES if (text := await wrong(case, client))}
        assert not found, "\n".join(f"{name} -> {text}" for name, text in found.items())
        assert len(gateway.streams) == sum(case.subject != MODELS for case in CASES)  # the good ones


@pytest.mark.parametrize("subject", NOBODY)
async def test_on_another_subject_or_version_nobody_answers_which_is_told_at_once(
    nats_server: NatsServer, subject: str
) -> None:
    async with served(nats_server) as (client, _):
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request(subject, pack(TEXT), timeout=LIMIT_S)
        assert await serves(client)


@pytest.mark.parametrize("payload", [pack(TEXT), b"", b"\xc1", pack({**TEXT, "stream": True})])
async def test_a_request_without_a_reply_subject_is_dropped(nats_server: NatsServer, payload: bytes) -> None:
    async with served(nats_server) as (client, gateway):
        for subject in GOOD:
            await client.publish(subject, payload)
        assert await serves(client) and len(gateway.streams) == 1


@pytest.mark.parametrize("reply", [GENERATE, CHATS, MODELS, "$SRV.PING", "dopd.v1.tokens"])
async def test_an_answer_sent_to_where_requests_come_from_goes_round_once(nats_server: NatsServer, reply: str) -> None:
    async with served(nats_server) as (client, gateway):
        for payload in (pack(TEXT), pack({**TEXT, "stream": True}), b"\xc1"):
            await client.publish(GENERATE, payload, reply=reply)
        assert await serves(client)
        assert await serves(client) and len(gateway.streams) == 4


async def test_a_payload_above_the_broker_s_limit_is_refused_where_it_is_sent(nats_server: NatsServer) -> None:
    async with served(nats_server) as (client, _):
        with pytest.raises(nats.errors.MaxPayloadError):
            await client.request(GENERATE, b" " * (client.max_payload + 1))
        assert await serves(client)


async def test_a_failure_that_quotes_what_came_is_short_enough_to_be_sent(nats_server: NatsServer) -> None:
    """Nearly all that fits into one message is the name of a field, or a wrong type."""
    async with served(nats_server) as (client, _):
        long = "x" * (client.max_payload - 200)
        for request in ({**TEXT, long: 1}, {**TEXT, "type": long}, {**TEXT, "model": long}):
            got = await asked(client, GENERATE, pack(request))
            assert got["type"] == "Failure" and len(got["message"]) < 1000


def test_there_are_enough_cases_and_each_has_a_name() -> None:
    assert len(CASES) >= 30 and len({case.name for case in CASES}) == len(CASES)
