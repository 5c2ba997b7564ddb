"""The gateways as instances of a NATS micro service: what they answer, and that requests go on as they did."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.micro.service import EndpointStats, ServiceInfo, ServicePing, ServiceStats

from dopd.bus.memory import MemoryBroker, MemoryBus
from dopd.bus.nats_bus import NatsBus
from dopd.errors import RequestError
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.discovery import Discovery
from dopd_gateway.nats_api import NatsApi
from dopd_proto.asked import Completion, Failure, Generate, ModelsReply, ModelsRequest
from dopd_proto.base import Foreign
from dopd_proto.codec import encode
from dopd_proto.subjects import GENERATE, MODELS, Address
from tests.nats_server import NatsServer, server_binary
from tests.text_side import MODEL, ScriptedGateway, ids_of, pieces, text_gateway, tiny_vocabulary

SAID = " brown fox jumps"
SUBJECTS = {"generate": "dopd.v1.generate", "chat": "dopd.v1.chat", "models": "dopd.v1.models"}
Test = Callable[[MemoryBus, list[Discovery]], Awaitable[None]]


def with_gateways(count: int, test: Test) -> None:
    async def main() -> None:
        broker = MemoryBroker(latency_s=0.001)
        found = []
        for number in range(1, count + 1):
            gateway = ScriptedGateway([0.25, *pieces(ids_of(SAID))])
            text = TextGateway(gateway, tiny_vocabulary(), VirtualRuntime(), Slo(), timeout_s=600.0)
            bus = broker.connect(f"g{number}")
            api = NatsApi(bus, text)
            endpoints = [*api.endpoints.values()]
            found.append(Discovery(bus, f"g{number}-7", 1_700_000_000.0, endpoints, {"model": text.model}))
            await api.start()
            await found[-1].start()
        await test(broker.connect("client"), found)

    run_virtual(main())


async def asked(bus: MemoryBus, subject: str) -> list[dict[str, Any]]:
    """All answers."""
    got: list[dict[str, Any]] = []
    to = Address(subject, (Foreign,))
    try:
        stream = await bus.stream(to, Foreign(payload=b""), (Foreign,), lambda m: got.append(json.loads(m.payload)))
    except Exception as error:
        return [{"error": type(error).__name__}]
    await asyncio.sleep(0.1)
    await stream.stop()
    return sorted(got, key=lambda answer: answer["id"])


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
def test_every_gateway_answers_to_all_to_its_service_and_one_to_its_id(verb: str) -> None:
    async def test(bus: MemoryBus, _: list[Discovery]) -> None:
        for subject in (f"$SRV.{verb}", f"$SRV.{verb}.dopd"):
            answers = await asked(bus, subject)
            assert [answer["id"] for answer in answers] == ["g1-7", "g2-7"]
            assert {answer["type"] for answer in answers} == {f"io.nats.micro.v1.{verb.lower()}_response"}
            assert all(answer["name"] == "dopd" and answer["metadata"] == {"model": MODEL} for answer in answers)
        assert [answer["id"] for answer in await asked(bus, f"$SRV.{verb}.dopd.g2-7")] == ["g2-7"]
        assert await asked(bus, f"$SRV.{verb}.other") == [{"error": "NoResponders"}]

    with_gateways(2, test)


def test_info_names_the_public_subjects_and_their_queue_group() -> None:
    async def test(bus: MemoryBus, _: list[Discovery]) -> None:
        (info,) = await asked(bus, "$SRV.INFO.dopd")
        assert {each["name"]: each["subject"] for each in info["endpoints"]} == SUBJECTS
        assert {each["queue_group"] for each in info["endpoints"]} == {"gateway"}

    with_gateways(1, test)


def test_stats_count_requests_errors_and_times_and_tell_nothing_of_what_was_asked() -> None:
    async def test(bus: MemoryBus, _: list[Discovery]) -> None:
        for _number in range(3):
            await bus.request(
                GENERATE.at(), Generate(model=MODEL, prompt="The quick", max_tokens=100), (Completion,), 30
            )
        with pytest.raises(RequestError):
            await bus.request(GENERATE.at(), Generate(model="of a secret name", prompt="secret"), (Completion,), 30)
        await bus.request(MODELS.at(), ModelsRequest(), (ModelsReply,), 30)
        (stats,) = await asked(bus, "$SRV.STATS.dopd")
        ends = {each["name"]: each for each in stats["endpoints"]}
        generate = ends["generate"]
        assert (generate["num_requests"], generate["num_errors"]) == (4, 1)
        assert generate["last_error"] == "404:model_not_found" and "secret" not in json.dumps(stats)
        assert generate["processing_time"] == pytest.approx(0.75e9, rel=0.01)
        assert generate["average_processing_time"] == generate["processing_time"] // 4
        assert (ends["models"]["num_requests"], ends["chat"]["num_requests"]) == (1, 0)
        assert stats["started"] == "2023-11-14T22:13:20Z"

    with_gateways(1, test)


def test_who_has_stopped_is_found_no_more_and_the_others_are() -> None:
    async def test(bus: MemoryBus, found: list[Discovery]) -> None:
        await found[0].stop()
        assert [answer["id"] for answer in await asked(bus, "$SRV.PING")] == ["g2-7"]

    with_gateways(2, test)


@pytest.mark.nats
def test_nats_pys_own_classes_read_the_answers_and_any_payload_will_do(tmp_path: Path) -> None:
    async def main(url: str) -> None:
        bus = await NatsBus.connect(url, "gateway")
        api = NatsApi(bus, text_gateway(ScriptedGateway(pieces(ids_of(SAID)))))
        await api.start()
        found = Discovery(bus, "g1-abc", 1_700_000_000.5, [*api.endpoints.values()], {})
        await found.start()
        client = await nats.connect(url)
        for payload in (b"", b"\xc1\xff", b"{}"):
            ping = ServicePing.from_dict(json.loads((await client.request("$SRV.PING", payload, timeout=5)).data))
            assert (ping.name, ping.id) == ("dopd", "g1-abc")
        info = ServiceInfo.from_dict(json.loads((await client.request("$SRV.INFO.dopd", timeout=5)).data))
        assert {each.name: each.subject for each in info.endpoints} == SUBJECTS
        ask = Generate(model="tiny", prompt="The quick", max_tokens=100)
        await client.request(GENERATE.at().name, encode(ask), timeout=10)
        answer = json.loads((await client.request("$SRV.STATS.dopd.g1-abc", timeout=5)).data)
        stats = ServiceStats.from_dict({**answer, "endpoints": []})
        ends = [EndpointStats.from_dict(each) for each in answer["endpoints"]]
        assert stats.id == "g1-abc" and {end.name: end.num_requests for end in ends} == {
            "generate": 1, "chat": 0, "models": 0,
        }  # fmt: skip
        await client.close()
        await found.stop()
        await api.stop(1.0)
        await bus.drain()

    server = NatsServer(server_binary(), tmp_path)
    server.start()
    try:
        asyncio.run(main(server.url))
    finally:
        server.stop()


def test_foreign_bytes_are_no_message_of_ours_to_anybody_else() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        text = text_gateway(ScriptedGateway())
        await NatsApi(broker.connect("gateway"), text).start()
        client, got = broker.connect("client"), asyncio.Queue[Failure]()
        await client.subscribe(Address("_INBOX.mine", (Failure,)), lambda delivery: got.put_nowait(delivery.message))
        broker.inject(GENERATE.at().name, encode(Foreign(payload=b"{}")), "_INBOX.mine")
        assert (await got.get()).status == 400

    run_virtual(main())
