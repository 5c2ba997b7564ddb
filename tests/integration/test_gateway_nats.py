"""The gateway's NATS side on the bus in memory, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from dopd.bus.memory import MemoryBroker, MemoryBus
from dopd.errors import DeadlineExceeded, PayloadTooLarge, RequestError, Unavailable
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.nats_api import NatsApi
from dopd_proto.base import Message
from dopd_proto.request import Chat, Chunk, Completion, Failure, Generate
from dopd_proto.subjects import CHAT, GENERATE, Address
from tests.text_side import MODEL, ScriptedGateway, ids_of, pieces, tiny_vocabulary

SAID = " brown fox jumps"
Test = Callable[[MemoryBus, NatsApi], Awaitable[None]]


def asked(**fields: Any) -> Generate:
    return Generate(**{"model": MODEL, "prompt": "The quick", "max_tokens": 100, **fields})


def with_gateway(gateway: ScriptedGateway, test: Test, max_payload: int = 1_000_000) -> None:
    async def main() -> None:
        broker = MemoryBroker(latency_s=0.001, max_payload=max_payload)
        text = TextGateway(gateway, tiny_vocabulary(), VirtualRuntime(), Slo(), timeout_s=600.0)
        api = NatsApi(broker.connect("gateway"), text)
        await api.start()
        await test(broker.connect("client"), api)
        await api.stop(timeout_s=1.0)

    run_virtual(main())


async def streamed(bus: MemoryBus, request: Generate | Chat) -> list[Chunk | Completion | Failure]:
    got: list[Chunk | Completion | Failure] = []
    ended = asyncio.Event()

    def take(message: Chunk | Completion | Failure) -> None:
        got.append(message)
        if not isinstance(message, Chunk):
            ended.set()

    to: Address[Any] = CHAT.at() if isinstance(request, Chat) else GENERATE.at()
    subscription = await bus.stream(to, request, (Chunk, Completion, Failure), take)
    await asyncio.wait_for(ended.wait(), 30)
    await subscription.stop()
    return got


def test_a_request_is_answered_with_one_completion() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        got = await bus.request(GENERATE.at(), asked(), (Completion,), 30)
        assert got.text == SAID and got.finish_reason == "length" and got.model == MODEL

    with_gateway(ScriptedGateway(pieces(ids_of(SAID))), test)


def test_a_stream_is_chunks_then_the_completion() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        *chunks, end = await streamed(bus, asked(stream=True))
        assert "".join(c.text for c in chunks if isinstance(c, Chunk)) == SAID
        assert isinstance(end, Completion) and end.seq == len(chunks)

    with_gateway(ScriptedGateway(pieces(ids_of(SAID), [2])), test)


@pytest.mark.parametrize(
    ("request_", "status"), [(asked(model="x"), 404), (asked(top_p=3.0), 400), (asked(max_tokens=10**9), 400)], ids=str
)
def test_a_refusal_has_the_fields_of_the_error(request_: Generate, status: int) -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        with pytest.raises(RequestError) as caught:
            await bus.request(GENERATE.at(), request_, (Completion,), 30)
        assert caught.value.status == status

    with_gateway(ScriptedGateway(), test)


def test_a_full_queue_is_a_retryable_failure() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        (failure,) = await streamed(bus, asked(stream=True))
        assert isinstance(failure, Failure) and failure.retryable and failure.status == 503

    gateway = ScriptedGateway()
    gateway.refuse = Unavailable("the queue is full")
    with_gateway(gateway, test)


def test_an_error_in_mid_stream_is_the_last_message() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        *chunks, failure = await streamed(bus, asked(stream=True))
        assert len(chunks) == len(ids_of(SAID))
        assert failure == DeadlineExceeded("too late").failure()

    with_gateway(ScriptedGateway([*pieces(ids_of(SAID), end=None), DeadlineExceeded("too late")]), test)


def test_a_bug_is_a_failure_that_tells_no_details() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        (failure,) = await streamed(bus, asked(stream=True))
        assert isinstance(failure, Failure) and failure.status == 500 and "secret" not in failure.message

    gateway = ScriptedGateway()
    gateway.refuse = ZeroDivisionError("secret")
    with_gateway(gateway, test)


def test_an_answer_above_the_payload_limit_is_a_failure_with_both_sizes() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        with pytest.raises(PayloadTooLarge) as caught:
            await bus.request(GENERATE.at(), asked(), (Completion,), 30)
        assert caught.value.size_bytes > caught.value.limit_bytes == 500

    with_gateway(ScriptedGateway(pieces(ids_of("fox " * 300))), test, max_payload=500)


def test_the_deadline_of_the_request_or_of_the_gateway_goes_inside() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        await bus.request(GENERATE.at(), asked(timeout_s=7.0), (Completion,), 30)
        await bus.request(GENERATE.at(), asked(), (Completion,), 30)
        assert [round(i.deadline_s) for i in gateway.inbounds] == [7, 600]

    gateway = ScriptedGateway(pieces(ids_of(SAID)))
    with_gateway(gateway, test)


def test_a_stopping_gateway_finishes_what_it_can_and_aborts_the_rest() -> None:
    async def test(bus: MemoryBus, api: NatsApi) -> None:
        quick = asyncio.create_task(bus.request(GENERATE.at(), asked(), (Completion,), 30))
        await gateway.opened.wait()
        gateway.script = ()
        stuck = asyncio.create_task(bus.request(GENERATE.at(), asked(), (Completion,), 30))
        await asyncio.sleep(0.1)
        await api.stop(timeout_s=1.0)
        assert (await quick).text == SAID
        await asyncio.sleep(0)
        assert [s.cancelled.is_set() for s in gateway.streams] == [False, True]
        stuck.cancel()

    gateway = ScriptedGateway([0.5, *pieces(ids_of(SAID))])
    with_gateway(gateway, test)


def test_one_gateway_of_the_group_gets_each_request() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        gateways = [ScriptedGateway(pieces(ids_of(SAID))) for _ in range(2)]
        for number, gateway in enumerate(gateways):
            text = TextGateway(gateway, tiny_vocabulary(), VirtualRuntime(), Slo(), timeout_s=600.0)
            await NatsApi(broker.connect(f"g{number}"), text).start()
        client = broker.connect("client")
        for _ in range(6):
            await client.request(GENERATE.at(), asked(), (Completion,), 30)
        assert [len(g.streams) for g in gateways] == [3, 3]

    run_virtual(main())


def test_bytes_that_are_no_request_get_a_failure_and_harm_nobody() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        text = TextGateway(gateway, tiny_vocabulary(), VirtualRuntime(), Slo(), timeout_s=600.0)
        await NatsApi(broker.connect("gateway"), text).start()
        client, got = broker.connect("client"), asyncio.Queue[Message]()
        await client.subscribe(Address("_INBOX.mine", (Failure,)), lambda delivery: got.put_nowait(delivery.message))
        # A field that Generate does not have, as a client in another language might send it.
        wrong = msgspec.msgpack.encode({"type": "Generate", "model": MODEL, "prompt": "x", "m": 2})
        broker.inject(GENERATE.at().name, wrong, "_INBOX.mine")
        failure = await got.get()
        assert isinstance(failure, Failure) and failure.status == 400 and "`m`" in failure.message
        assert (await client.request(GENERATE.at(), asked(), (Completion,), 30)).text == SAID

    gateway = ScriptedGateway(pieces(ids_of(SAID)))
    run_virtual(main())


def test_a_request_without_an_inbox_is_not_worked_on() -> None:
    async def test(bus: MemoryBus, _: NatsApi) -> None:
        bus.publish(GENERATE.at(), asked())
        await asyncio.sleep(1)
        assert gateway.streams == []

    gateway = ScriptedGateway(pieces(ids_of(SAID)))
    with_gateway(gateway, test)
