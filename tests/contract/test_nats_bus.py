"""What only the bus and the ledger on NATS can show: frozen servers, full outboxes, nobody there."""

import asyncio
import contextlib

import pytest

from dopd.bus.nats_bus import NatsBus
from dopd.errors import BusError, LedgerLost
from dopd.ledger.jetstream import JetStreamLedger
from dopd.runtime.clock import RealRuntime
from dopd_proto import subjects
from dopd_proto.request import Abort
from tests.contract.bus_rig import Taker, faults_of, until
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats

W1 = subjects.ABORT.at(worker_id="w1")
NOBODY = "nats://127.0.0.1:1"


async def test_connecting_to_nobody_fails_in_time_and_names_the_address() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(BusError, match="no broker at nats://127"):
        await NatsBus.connect(NOBODY, "b", connect_timeout_s=0.2)
    with pytest.raises(LedgerLost):
        await JetStreamLedger.open(NOBODY, RealRuntime(), timeout_s=0.2)
    assert loop.time() - before < 4.0
    assert len(asyncio.all_tasks()) == 1, "nothing goes on trying"


async def test_a_frozen_server_is_noticed_and_after_it_thaws_messages_flow_again(nats_server: NatsServer) -> None:
    bus = await NatsBus.connect(nats_server.url, "b", ping_interval_s=0.1)
    taker = Taker()
    await bus.subscribe(W1, taker)
    nats_server.freeze()
    await until(lambda: not bus.connected, 3.0)
    bus.publish(W1, Abort(request_id="r", attempt=1))
    nats_server.thaw()
    await until(lambda: bus.connected, 10.0)
    await taker.count(1)
    await bus.drain()


async def test_a_frozen_server_is_ledger_lost_within_the_time_out(nats_server: NatsServer) -> None:
    loop = asyncio.get_running_loop()
    ledger = await JetStreamLedger.open(nats_server.url, RealRuntime(), timeout_s=1.0)
    await ledger.append("log", b"1")
    nats_server.freeze()
    before = loop.time()
    with pytest.raises(LedgerLost):
        await ledger.append("log", b"2")
    assert loop.time() - before < 4.0
    nats_server.thaw()
    await ledger.close()


async def test_what_does_not_fit_into_the_outbox_is_told_with_its_number(nats_server: NatsServer) -> None:
    bus = await NatsBus.connect(nats_server.url, "b", outbox_bytes=20_000)
    faults, taker = faults_of(bus), Taker()
    await bus.subscribe(W1, taker)
    nats_server.kill()
    await until(lambda: not bus.connected)
    for number in range(1000):
        bus.publish(W1, Abort(request_id="r", attempt=number))
    nats_server.start()
    await until(lambda: sum(f.kind == "outbox_overflow" for f in faults) == 2, 10.0)
    bus.publish(W1, Abort(request_id="last", attempt=1000))
    await until(lambda: any(m == Abort(request_id="last", attempt=1000) for m in taker.messages))
    overflows = [f for f in faults if f.kind == "outbox_overflow"]
    assert overflows[0].subject == W1.name
    assert overflows[1].detail == f"{1000 - (len(taker.messages) - 1)} messages were dropped in all"
    assert [m.attempt for m in taker.messages if isinstance(m, Abort)][:-1] == list(range(len(taker.messages) - 1))
    await bus.drain()


async def test_what_was_kept_waits_for_receivers_that_reconnect_a_little_later(nats_server: NatsServer) -> None:
    sender = await NatsBus.connect(nats_server.url, "s", reconnect_wait_s=0.1)
    late = [await NatsBus.connect(nats_server.url, f"r{n}", reconnect_wait_s=0.22) for n in range(4)]
    takers = [Taker() for _ in late]
    for bus, taker in zip(late, takers, strict=True):
        await bus.subscribe(W1, taker)
    nats_server.kill()
    await until(lambda: not any(bus.connected for bus in (sender, *late)))
    # Now each of them tries in its own rhythm.
    await asyncio.sleep(0.3)
    sender.publish(W1, Abort(request_id="r", attempt=1))
    nats_server.start()
    for taker in takers:
        await taker.count(1)
    for bus in (sender, *late):
        await bus.drain()


async def test_a_drain_while_the_server_is_away_ends_in_time_and_tells_what_was_never_sent(
    nats_server: NatsServer,
) -> None:
    bus = await NatsBus.connect(nats_server.url, "b")
    faults = faults_of(bus)
    nats_server.kill()
    await until(lambda: not bus.connected)
    bus.publish(W1, Abort(request_id="r", attempt=1))
    before = asyncio.get_running_loop().time()
    await bus.drain(0.3)
    assert asyncio.get_running_loop().time() - before < 2.0
    assert ("closed", "1 messages were never sent") in [(f.kind, f.detail) for f in faults]


async def test_subscriptions_and_requests_leave_nothing_behind(nats_server: NatsServer) -> None:
    bus = await NatsBus.connect(nats_server.url, "b")
    tasks = len(asyncio.all_tasks())
    for number in range(100):
        subscription = await bus.subscribe(subjects.ABORT.at(worker_id=f"w{number}"), Taker())
        await subscription.stop()
        with contextlib.suppress(BusError):
            await bus.request(W1, Abort(request_id="r", attempt=1), (Abort,), 1.0)
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == tasks
    assert not bus.inbox._askers and not bus.inbox._marks and not bus._subscriptions
    await bus.drain()
    assert len(asyncio.all_tasks()) == 1


async def test_closing_in_the_middle_of_a_reconnect_leaves_no_task_that_goes_on_trying(
    nats_server: NatsServer,
) -> None:
    buses = [await NatsBus.connect(nats_server.url, f"b{n}", reconnect_wait_s=0.001) for n in range(20)]
    nats_server.kill()
    await until(lambda: not any(bus.connected for bus in buses))
    # At many different moments of a try, because one of them swallowed the cancellation.
    for number, bus in enumerate(buses):
        await asyncio.sleep(0.0003 * number)
        await bus.drain(0.01)
    assert len(asyncio.all_tasks()) == 1
