"""The promises of `dopd.bus`, kept by the bus in memory and by the one on NATS."""

import asyncio
from itertools import pairwise

import pytest

from dopd.bus import Delivery
from dopd.errors import (
    BadRequest,
    BusClosed,
    BusError,
    NoResponders,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
    Unavailable,
)
from dopd_proto import subjects
from dopd_proto.codec import encode
from dopd_proto.request import Abort, Chunk, Completion, Failure, Generate, Resend, ResendReply, Run, Usage
from dopd_proto.subjects import Address
from tests.contract.bus_rig import Rig, Taker, faults_of, on_every_bus, until

W1 = subjects.ABORT.at(worker_id="w1")
RESEND = subjects.RESEND.at(worker_id="w1")
ASK = Resend(gateway_id="g1", request_id="r1", attempt=1, index=0)


def abort(attempt: int) -> Abort:
    return Abort(request_id="r1", attempt=attempt)


def attempts(taker: Taker) -> list[int]:
    return [message.attempt for message in taker.messages if isinstance(message, Abort)]


@on_every_bus
async def test_messages_of_one_publisher_on_one_subject_arrive_in_order(rig: Rig) -> None:
    sender, receiver, taker = await rig.connect("s"), await rig.connect("r"), Taker()
    await receiver.subscribe(W1, taker)
    for number in range(500):
        sender.publish(W1, abort(number))
    await taker.count(500)
    assert attempts(taker) == list(range(500))


@on_every_bus
async def test_every_subscriber_gets_a_message_but_only_one_member_of_a_queue_group(rig: Rig) -> None:
    sender, receiver = await rig.connect("s"), await rig.connect("r")
    alone, members = Taker(), [Taker() for _ in range(3)]
    await receiver.subscribe(W1, alone)
    for member in members:
        await receiver.subscribe(W1, member, queue="pool")
    for number in range(300):
        sender.publish(W1, abort(number))
    await alone.count(300)
    await until(lambda: sum(len(m.messages) for m in members) >= 300)
    assert sorted(n for m in members for n in attempts(m)) == list(range(300))
    assert all(len(m.messages) > 30 for m in members), "each member gets a share"


@on_every_bus
async def test_a_member_that_leaves_a_queue_group_takes_what_was_given_to_it_and_nothing_after(rig: Rig) -> None:
    sender, leaver, stayer = await rig.connect("s"), await rig.connect("l"), await rig.connect("r")
    leaving, staying = Taker(), Taker()
    member = await leaver.subscribe(W1, leaving, queue="pool")
    await stayer.subscribe(W1, staying, queue="pool")

    async def publish() -> None:
        for number in range(3000):
            sender.publish(W1, abort(number))
            if number % 20 == 0:
                await asyncio.sleep(1e-4)

    publishing = asyncio.create_task(publish())
    await leaving.count(100)
    await member.stop()
    taken = len(leaving.messages)
    await publishing
    await until(lambda: len(leaving.messages) + len(staying.messages) >= 3000)
    assert sorted([*attempts(leaving), *attempts(staying)]) == list(range(3000))
    assert len(leaving.messages) == taken


@on_every_bus
async def test_a_star_matches_one_token_and_an_arrow_the_rest(rig: Rig) -> None:
    bus = await rig.connect("b")
    star, arrow = Taker(), Taker()
    await bus.subscribe(subjects.ABORT.at(), star)
    await bus.subscribe(Address("dopd.v1.worker.>", (Abort,)), arrow)
    for name in ("w1", "w2"):
        bus.publish(subjects.ABORT.at(worker_id=name), abort(1))
    bus.publish(Address("dopd.v1.worker.w3.abort.deeper", (Abort,)), abort(2))
    bus.publish(Address("dopd.v1.worker", (Abort,)), abort(3))
    bus.publish(Address("dopd.v1.gateway.w1.abort", (Abort,)), abort(4))
    await arrow.count(3)
    assert star.subjects == ["dopd.v1.worker.w1.abort", "dopd.v1.worker.w2.abort"]
    assert arrow.subjects == [*star.subjects, "dopd.v1.worker.w3.abort.deeper"]


@on_every_bus
async def test_whoever_publishes_after_a_subscription_is_made_is_heard_on_any_connection(rig: Rig) -> None:
    sender, receiver = await rig.connect("s"), await rig.connect("r")
    for number in range(50):
        to, taker = subjects.ABORT.at(worker_id=f"w{number}"), Taker()
        await receiver.subscribe(to, taker)
        sender.publish(to, abort(number))
        await taker.count(1)


@on_every_bus
async def test_nothing_is_delivered_after_a_subscription_was_stopped(rig: Rig) -> None:
    bus, stopped, running = await rig.connect("b"), Taker(), Taker()
    subscription = await bus.subscribe(W1, stopped)
    await bus.subscribe(W1, running)
    bus.publish(W1, abort(1))
    await running.count(1)
    await subscription.stop()
    bus.publish(W1, abort(2))
    await running.count(2)
    assert attempts(stopped) == [1]


@on_every_bus
async def test_a_request_gets_the_answer_of_the_one_who_serves(rig: Rig) -> None:
    asker, server = await rig.connect("a"), await rig.connect("s")

    async def serve(message: Resend) -> ResendReply:
        await asyncio.sleep(0.001)
        return ResendReply(run=Run(request_id=message.request_id, attempt=1, index=message.index))

    await server.serve(RESEND, serve, queue="q")
    asks = [Resend(gateway_id="g", request_id=f"r{n}", attempt=1, index=n) for n in range(50)]
    answers = await asyncio.gather(*(asker.request(RESEND, ask, (ResendReply,), 5.0) for ask in asks))
    assert [a.run.request_id for a in answers if a.run] == [ask.request_id for ask in asks]


@on_every_bus
async def test_a_plain_subscriber_can_answer_a_request_by_its_reply_address(rig: Rig) -> None:
    asker, server = await rig.connect("a"), await rig.connect("s")

    def handle(delivery: Delivery[Resend]) -> None:
        server.answer(delivery.reply_to, ResendReply())

    await server.subscribe(RESEND, handle)
    assert await asker.request(RESEND, ASK, (ResendReply,), 5.0) == ResendReply()


@on_every_bus
async def test_an_answer_never_goes_to_a_subject_of_ours_whatever_the_asker_names(rig: Rig) -> None:
    bus, taker = await rig.connect("b"), Taker()
    faults = faults_of(bus)
    await bus.subscribe(W1, taker)
    for named in (W1.name, "dopd.ledger.decisions", "$JS.API.STREAM.DELETE.dopd_log_decisions"):
        bus.answer(named, abort(1))
    bus.publish(W1, abort(2))
    await taker.count(1)
    assert attempts(taker) == [2], "an answer sent before would have come before"
    assert [fault.kind for fault in faults] == ["no_inbox"] * 3


@on_every_bus
async def test_a_request_to_nobody_fails_at_once(rig: Rig) -> None:
    bus = await rig.connect("b")
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(NoResponders):
        await bus.request(RESEND, ASK, (ResendReply,), 30.0)
    assert loop.time() - before < 5.0


@on_every_bus
async def test_a_request_that_is_not_answered_ends_at_its_deadline(rig: Rig) -> None:
    bus = await rig.connect("b")
    await bus.subscribe(RESEND, lambda delivery: None)
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(RequestTimeout):
        await bus.request(RESEND, ASK, (ResendReply,), 0.05)
    assert 0.045 < loop.time() - before < 5.0


@on_every_bus
async def test_an_error_of_the_server_is_raised_at_the_asker_with_all_its_fields(rig: Rig) -> None:
    bus = await rig.connect("b")

    async def serve(message: Resend) -> ResendReply:
        raise {1: BadRequest("index", "index"), 2: Unavailable("later"), 3: PayloadTooLarge(9, 8)}[message.attempt]

    await bus.serve(RESEND, serve)
    caught = []
    for attempt in (1, 2, 3):
        with pytest.raises(RequestError) as info:
            await bus.request(
                RESEND, Resend(gateway_id="g", request_id="r", attempt=attempt, index=0), (ResendReply,), 5
            )
        caught.append(info.value)
    assert isinstance(caught[0], BadRequest) and (caught[0].param, caught[0].status) == ("index", 400)
    assert isinstance(caught[1], Unavailable) and caught[1].retryable
    assert isinstance(caught[2], PayloadTooLarge) and (caught[2].size_bytes, caught[2].limit_bytes) == (9, 8)


@on_every_bus
async def test_a_crash_of_the_server_is_a_500_at_the_asker_and_a_fault_at_the_server(rig: Rig) -> None:
    asker, server = await rig.connect("a"), await rig.connect("s")
    faults = faults_of(server)

    async def serve(message: Resend) -> ResendReply:
        raise KeyError("lost")

    await server.serve(RESEND, serve)
    with pytest.raises(RequestError) as info:
        await asker.request(RESEND, ASK, (ResendReply,), 5.0)
    assert info.value.status == 500
    assert [(f.kind, f.subject) for f in faults] == [("handler", RESEND.name)]


@on_every_bus
async def test_an_answer_of_the_wrong_type_is_a_bus_error_and_no_time_out(rig: Rig) -> None:
    bus = await rig.connect("b")

    async def serve(message: Resend) -> Usage:
        return Usage(prompt_tokens=1, completion_tokens=1)

    await bus.serve(RESEND, serve)
    with pytest.raises(BusError) as info:
        await bus.request(RESEND, ASK, (ResendReply,), 30.0)
    assert not isinstance(info.value, RequestTimeout)


@on_every_bus
async def test_a_stream_gets_all_answers_in_order_until_it_is_stopped(rig: Rig) -> None:
    asker, server = await rig.connect("a"), await rig.connect("s")
    got: list[Chunk | Completion | Failure] = []

    def handle(delivery: Delivery[Generate]) -> None:
        for seq in range(3):
            server.answer(delivery.reply_to, Chunk(request_id="r", seq=seq, index=seq, text="x"))
        server.answer(delivery.reply_to, Unavailable("enough").failure())

    await server.subscribe(subjects.GENERATE.at(), handle)
    ask = Generate(model="m", prompt="p", stream=True)
    replies = (Chunk, Completion, Failure)
    streams = [await asker.stream(subjects.GENERATE.at(), ask, replies, got.append) for _ in range(1)]
    await until(lambda: len(got) == 4)
    assert [m.seq for m in got if isinstance(m, Chunk)] == [0, 1, 2]
    assert isinstance(got[3], Failure)
    await streams[0].stop()


@on_every_bus
async def test_a_stream_to_nobody_fails_at_once(rig: Rig) -> None:
    bus = await rig.connect("b")
    with pytest.raises(NoResponders):
        await bus.stream(subjects.GENERATE.at(), Generate(model="m", prompt="p"), (Chunk,), lambda reply: None)


@on_every_bus
async def test_bytes_that_are_no_message_are_reported_and_the_next_message_is_delivered(rig: Rig) -> None:
    bus, taker = await rig.connect("b"), Taker()
    faults = faults_of(bus)
    await bus.subscribe(W1, taker)
    await rig.inject(W1.name, b"\xc1garbage")
    await rig.inject(W1.name, encode(ASK))
    await rig.inject(W1.name, encode(abort(7)))
    await taker.count(1)
    assert attempts(taker) == [7]
    assert [(f.kind, f.subject) for f in faults] == [("decode", W1.name)] * 2


@on_every_bus
async def test_one_who_waits_for_an_answer_to_bytes_that_are_no_message_is_told(rig: Rig) -> None:
    server, client, inbox = await rig.connect("s"), await rig.connect("c"), Taker()
    faults = faults_of(server)
    await server.subscribe(W1, Taker())
    await client.subscribe(Address("_INBOX.somebody", (Failure,)), inbox)
    await rig.inject(W1.name, encode(ASK), "_INBOX.somebody")
    await inbox.count(1)
    (failure,) = inbox.messages
    assert isinstance(failure, Failure) and (failure.status, failure.code) == (400, BadRequest.code)
    assert W1.name in failure.message and [f.kind for f in faults] == ["decode"]


@on_every_bus
async def test_a_handler_that_fails_is_reported_and_the_next_message_is_delivered(rig: Rig) -> None:
    bus, taker = await rig.connect("b"), Taker()
    faults = faults_of(bus)

    def handle(delivery: Delivery[Abort]) -> None:
        if delivery.message.attempt == 1:
            raise ValueError("no")
        taker(delivery)

    await bus.subscribe(W1, handle)
    bus.publish(W1, abort(1))
    bus.publish(W1, abort(2))
    await taker.count(1)
    assert [f.kind for f in faults] == ["handler"]


@on_every_bus
async def test_a_consumer_that_cannot_keep_up_is_noticed(rig: Rig) -> None:
    rig.max_pending = 10
    sender, receiver, taker = await rig.connect("s"), await rig.connect("r"), Taker()
    faults = faults_of(receiver)
    await receiver.subscribe(W1, taker)
    for number in range(5000):
        sender.publish(W1, abort(number))
    await until(lambda: len(taker.messages) + len(faults) >= 5000)
    assert {(f.kind, f.subject) for f in faults} == {("slow_consumer", W1.name)}
    assert attempts(taker)[:10] == list(range(10)), "the order of what arrives is kept"
    assert all(a < b for a, b in pairwise(attempts(taker)))


@on_every_bus
async def test_a_message_above_the_limit_is_refused_before_sending_with_both_sizes(rig: Rig) -> None:
    bus, taker = await rig.connect("b"), Taker()
    await bus.subscribe(W1, taker)
    empty = len(encode(Abort(request_id="x" * 100_000, attempt=1))) - 100_000
    at_limit = Abort(request_id="x" * (bus.max_payload - empty), attempt=1)
    above = Abort(request_id="x" * (bus.max_payload - empty + 1), attempt=1)
    bus.publish(W1, at_limit)
    with pytest.raises(PayloadTooLarge) as info:
        bus.publish(W1, above)
    assert (info.value.size_bytes, info.value.limit_bytes) == (bus.max_payload + 1, bus.max_payload)
    bus.publish(W1, abort(2))
    await taker.count(2)
    assert taker.messages == [at_limit, abort(2)]


@on_every_bus
async def test_an_answer_above_the_limit_reaches_the_asker_as_an_error(rig: Rig) -> None:
    bus = await rig.connect("b")

    async def serve(message: Resend) -> Failure:
        return Failure(code="x", message="y" * (bus.max_payload + 1), status=500)

    await bus.serve(RESEND, serve)
    with pytest.raises(PayloadTooLarge):
        await bus.request(RESEND, ASK, (ResendReply,), 5.0)


@on_every_bus
async def test_draining_finishes_what_was_taken_and_then_refuses(rig: Rig) -> None:
    asker, server = await rig.connect("a"), await rig.connect("s")
    begun = asyncio.Event()

    async def serve(message: Resend) -> ResendReply:
        begun.set()
        await asyncio.sleep(0.05)
        return ResendReply()

    await server.serve(RESEND, serve)
    answer = asyncio.ensure_future(asker.request(RESEND, ASK, (ResendReply,), 5.0))
    await begun.wait()
    await server.drain(5.0)
    assert await answer == ResendReply()
    with pytest.raises(BusClosed):
        server.publish(W1, abort(1))
    with pytest.raises(BusClosed):
        await server.subscribe(W1, Taker())
    with pytest.raises(NoResponders):
        await asker.request(RESEND, ASK, (ResendReply,), 5.0)
    assert not server.connected


@on_every_bus
async def test_draining_ends_in_time_when_a_handler_does_not(rig: Rig) -> None:
    bus = await rig.connect("b")

    async def serve(message: Resend) -> ResendReply:
        await asyncio.sleep(3600)
        return ResendReply()

    await bus.serve(RESEND, serve)
    lost = asyncio.ensure_future(bus.request(RESEND, ASK, (ResendReply,), 0.3))
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await bus.drain(0.2)
    assert loop.time() - before < 2.0
    with pytest.raises(BusError):
        await lost


@on_every_bus
async def test_what_is_published_during_an_outage_arrives_in_order_after_it(rig: Rig) -> None:
    sender, receiver, taker = await rig.connect("s"), await rig.connect("r"), Taker()
    faults = faults_of(receiver)
    await receiver.subscribe(W1, taker)
    since = receiver.connected_since_s
    sender.publish(W1, abort(0))
    await taker.count(1)
    await rig.down()
    assert not sender.connected and not receiver.connected
    for number in range(1, 200):
        sender.publish(W1, abort(number))
    await asyncio.sleep(0.05)
    assert attempts(taker) == [0]
    await rig.up()
    assert sender.connected and receiver.connected_since_s > since
    sender.publish(W1, abort(200))
    await taker.count(201)
    assert attempts(taker) == list(range(201)), "subscriptions live on, and nothing is lost or doubled"
    assert "disconnected" in {f.kind for f in faults}


@on_every_bus
async def test_requests_are_served_again_after_an_outage_and_those_given_up_are_not_sent(rig: Rig) -> None:
    asker, server = await rig.connect("a"), await rig.connect("s")
    served: list[int] = []

    async def serve(message: Resend) -> ResendReply:
        served.append(message.index)
        return ResendReply()

    await server.serve(RESEND, serve)
    await rig.down()
    with pytest.raises(RequestTimeout):
        await asker.request(RESEND, Resend(gateway_id="g", request_id="r", attempt=1, index=1), (ResendReply,), 0.05)
    await rig.up()
    await asker.request(RESEND, Resend(gateway_id="g", request_id="r", attempt=1, index=2), (ResendReply,), 5.0)
    assert served == [2]
