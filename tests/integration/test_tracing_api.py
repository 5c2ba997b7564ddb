"""The timeline as clients get it, over HTTP and NATS, from an emulated cluster in virtual time."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from dopd.bus.memory import MemoryBus
from dopd.engine.sim.tokens import VOCABULARY
from dopd.policy.simple import SIMPLE
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.http import create_app
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.request import Chunk, Completion, Failure, Generate
from dopd_proto.subjects import GENERATE

PROMPT = list(range(3, 903))
BODY: dict[str, Any] = {"model": "sim", "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "temperature": 0}
ASK = {"x-dopd-timeline": "1"}
USAGE = {"stream_options": {"include_usage": True}}


def serving(test: Callable[[httpx.AsyncClient, MemoryBus], Awaitable[None]]) -> None:
    async def main() -> None:
        runtime = VirtualRuntime(0)
        cluster = LocalCluster(runtime, policy=SIMPLE, latency_s=2e-4)
        await cluster.start()
        api = TextGateway(cluster.gateway, NumberTokenizer(VOCABULARY), runtime, Slo(), 60.0)
        nats = NatsApi(cluster.broker.connect("api"), api)
        await nats.start()
        await asyncio.sleep(1.0)  # until everybody knows everybody
        transport = httpx.ASGITransport(app=create_app(api, 1 << 20))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:
            await test(client, cluster.broker.connect("client"))
        await nats.stop(1.0)
        await cluster.stop()

    run_virtual(main())


def check(timeline: list[Any]) -> None:
    names = [name for name, _, _, _ in timeline]
    assert names[0] == "sent" and names[-1] == "finished"
    assert {"prefilling", "first_token_sent", "handing_over", "first_decode_step", "decoding"} <= set(names)
    assert all(start_s < end_s for _, start_s, end_s, _ in timeline)
    assert [where for name, _, _, where in timeline if name in ("sent", "prefilling", "decoding")] == ["g1", "w1", "w3"]


def events_of(body: str) -> list[Any]:
    *events, done = body.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_plain_http_answer_has_the_timeline_if_it_was_asked_for() -> None:
    async def test(client: httpx.AsyncClient, _: MemoryBus) -> None:
        asked = (await client.post("/v1/completions", json=BODY, headers=ASK)).json()
        check(asked["timeline"])
        for headers in ({}, {"x-dopd-timeline": "0"}):
            assert "timeline" not in (await client.post("/v1/completions", json=BODY, headers=headers)).json()

    serving(test)


@pytest.mark.parametrize("options", [{}, USAGE])
def test_a_stream_has_the_timeline_in_its_last_event_only(options: dict[str, Any]) -> None:
    async def test(client: httpx.AsyncClient, _: MemoryBus) -> None:
        body = {**BODY, "stream": True, **options}
        *rest, last = events_of((await client.post("/v1/completions", json=body, headers=ASK)).text)
        check(last["timeline"])
        assert not any("timeline" in event for event in rest)
        assert ("usage" in last) is bool(options)
        assert not any("timeline" in e for e in events_of((await client.post("/v1/completions", json=body)).text))

    serving(test)


def test_a_stop_string_ends_the_timeline_as_any_other_end_does() -> None:
    async def test(client: httpx.AsyncClient, _: MemoryBus) -> None:
        free = (await client.post("/v1/completions", json={**BODY, "max_tokens": 40})).json()["choices"][0]["text"]
        word = free.split()[3]
        body = {**BODY, "max_tokens": 40, "stop": word}
        got = (await client.post("/v1/completions", json=body, headers=ASK)).json()
        assert got["choices"][0]["finish_reason"] == "stop" and got["timeline"][-1][0] == "finished"

    serving(test)


@pytest.mark.parametrize("stream", [False, True])
def test_over_nats_the_completion_has_the_timeline_if_it_was_asked_for(stream: bool) -> None:
    async def test(_: httpx.AsyncClient, bus: MemoryBus) -> None:
        for timeline in (True, False):
            ask = Generate(model="sim", prompt=PROMPT, max_tokens=5, ignore_eos=True, stream=stream, timeline=timeline)
            got = await _completion(bus, ask)
            if timeline:
                check(list(got.timeline))
            else:
                assert got.timeline == ()

    serving(test)


async def _completion(bus: MemoryBus, ask: Generate) -> Completion:
    got: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()

    def take(message: Chunk | Completion | Failure) -> None:
        if not isinstance(message, Chunk):
            assert isinstance(message, Completion)
            got.set_result(message)

    subscription = await bus.stream(GENERATE.at(), ask, (Chunk, Completion, Failure), take)
    completion = await asyncio.wait_for(got, 30)
    await subscription.stop()
    return completion
