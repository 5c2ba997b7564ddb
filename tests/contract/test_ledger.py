"""The promises of `dopd.ledger`, kept by the ledger in memory and by the one on JetStream."""

import asyncio

import pytest

from dopd.errors import Conflict, LedgerLost
from dopd.ledger import Entry
from dopd.ledger.jetstream import JetStreamLedger
from dopd.runtime.clock import RealRuntime
from tests.contract.ledger_rig import TIMEOUT_S, LedgerRig, on_every_ledger
from tests.nats_server import NatsServer


@on_every_ledger
async def test_records_are_read_back_in_the_order_they_were_added(rig: LedgerRig) -> None:
    ledger = await rig.open()
    assert await ledger.read("decisions") == []
    assert [await ledger.append("decisions", f"{n}".encode()) for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert await ledger.read("decisions") == [Entry(n, f"{n}".encode()) for n in range(1, 6)]
    assert await ledger.read("decisions", start=4) == [Entry(4, b"4"), Entry(5, b"5")]
    assert await ledger.read("decisions", start=2, limit=2) == [Entry(2, b"2"), Entry(3, b"3")]
    assert await ledger.read("decisions", start=6) == []


@on_every_ledger
async def test_logs_do_not_mix_and_names_that_look_alike_are_different(rig: LedgerRig) -> None:
    ledger = await rig.open()
    for name in ("a.b", "a_b", "a_db", "a-b", "a_.b", "a._b"):
        assert await ledger.append(name, name.encode()) == 1
    for name in ("a.b", "a_b", "a_db", "a-b", "a_.b", "a._b"):
        assert await ledger.read(name) == [Entry(1, name.encode())]
    with pytest.raises(ValueError, match="with dots between"):
        await ledger.append("a b", b"")


@on_every_ledger
async def test_indexes_have_no_holes_with_many_writers_at_once(rig: LedgerRig) -> None:
    ledgers = [await rig.open() for _ in range(3)]
    indexes = await asyncio.gather(
        *(ledger.append("log", f"{w}/{n}".encode()) for n in range(60) for w, ledger in enumerate(ledgers))
    )
    assert sorted(indexes) == list(range(1, 181))
    entries = await ledgers[0].read("log")
    assert [entry.index for entry in entries] == list(range(1, 181))
    assert len({entry.payload for entry in entries}) == 180


@on_every_ledger
async def test_of_two_who_change_a_key_from_the_same_revision_one_wins(rig: LedgerRig) -> None:
    first, second = await rig.open(), await rig.open()
    assert await first.get("pin.w1") is None
    revision = await first.put("pin.w1", b"prefill", 0)
    assert await second.get("pin.w1") == (b"prefill", revision)
    with pytest.raises(Conflict):
        await second.put("pin.w1", b"decode", 0)
    newer = await second.put("pin.w1", b"decode", revision)
    assert newer > revision
    with pytest.raises(Conflict):
        await first.put("pin.w1", b"mixed", revision)
    assert await first.get("pin.w1") == (b"decode", newer)


@on_every_ledger
async def test_of_many_who_race_for_a_key_exactly_one_wins(rig: LedgerRig) -> None:
    ledgers = [await rig.open() for _ in range(4)]
    outcomes = await asyncio.gather(
        *(ledger.put("k", f"{n}".encode(), 0) for n, ledger in enumerate(ledgers)), return_exceptions=True
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3


@on_every_ledger
async def test_a_lease_is_held_by_one_and_renewed_with_its_term(rig: LedgerRig) -> None:
    first, second = await rig.open(), await rig.open()
    lease = await first.acquire("planner", "p1", 10.0)
    assert lease is not None and (lease.holder, lease.term) == ("p1", 1)
    assert await second.acquire("planner", "p2", 10.0) is None
    rig.pass_time(5.0)
    renewed = await first.acquire("planner", "p1", 10.0)
    assert renewed is not None and renewed.term == 1 and renewed.expires_s > lease.expires_s
    rig.pass_time(7.0)
    assert await second.acquire("planner", "p2", 10.0) is None, "the renewal counts"


@on_every_ledger
async def test_a_lease_that_lapsed_is_taken_over_with_a_higher_term(rig: LedgerRig) -> None:
    first, second = await rig.open(), await rig.open()
    await first.acquire("planner", "p1", 10.0)
    rig.pass_time(10.1)
    taken = await second.acquire("planner", "p2", 10.0)
    assert taken is not None and (taken.holder, taken.term) == ("p2", 2)
    assert await first.acquire("planner", "p1", 10.0) is None
    rig.pass_time(10.1)
    back = await first.acquire("planner", "p1", 10.0)
    assert back is not None and back.term == 3


@on_every_ledger
async def test_a_lease_that_was_given_back_is_free_at_once_and_its_term_goes_on(rig: LedgerRig) -> None:
    first, second = await rig.open(), await rig.open()
    lease = await first.acquire("planner", "p1", 10.0)
    assert lease is not None
    await first.release(lease)
    taken = await second.acquire("planner", "p2", 10.0)
    assert taken is not None and taken.term == 2
    await first.release(lease)
    assert await first.acquire("planner", "p1", 10.0) is None, "an old lease gives nothing back"


@on_every_ledger
async def test_of_many_who_race_for_a_lease_exactly_one_gets_it(rig: LedgerRig) -> None:
    ledgers = [await rig.open() for _ in range(4)]
    for term in (1, 2, 3):
        leases = await asyncio.gather(*(ledger.acquire("l", f"p{n}", 5.0) for n, ledger in enumerate(ledgers)))
        held = [lease for lease in leases if lease is not None]
        assert len(held) == 1
        assert held[0].term == term
        await ledgers[0].release(held[0])


@on_every_ledger
async def test_a_store_that_is_gone_is_ledger_lost_within_the_time_out(rig: LedgerRig) -> None:
    ledger = await rig.open()
    await ledger.append("log", b"1")
    lease = await ledger.acquire("planner", "p1", 10.0)
    assert lease is not None
    rig.lost()
    loop = asyncio.get_running_loop()
    calls = {
        "append": ledger.append("log", b"2"),
        "read": ledger.read("log"),
        "get": ledger.get("k"),
        "put": ledger.put("k", b"v", 0),
        "acquire": ledger.acquire("planner", "p1", 10.0),
        "release": ledger.release(lease),
    }
    before = loop.time()
    outcomes = await asyncio.gather(*calls.values(), return_exceptions=True)
    assert loop.time() - before < TIMEOUT_S + 2.0
    for name, outcome in zip(calls, outcomes, strict=True):
        assert isinstance(outcome, LedgerLost), name


@on_every_ledger
async def test_records_keys_and_leases_survive_a_restart_of_the_store(rig: LedgerRig) -> None:
    first, second = await rig.open(), await rig.open()
    await first.append("log", b"1")
    revision = await first.put("k", b"v", 0)
    await first.acquire("planner", "p1", 10.0)
    rig.lost()
    with pytest.raises(LedgerLost):
        await first.append("log", b"never written")
    rig.found()
    await rig.answers(first)
    await rig.answers(second)
    assert await first.read("log") == [Entry(1, b"1")]
    assert await first.append("log", b"2") == 2
    assert await first.get("k") == (b"v", revision)
    assert await second.acquire("planner", "p2", 10.0) is None
    rig.pass_time(11.0)
    taken = await second.acquire("planner", "p2", 10.0)
    assert taken is not None and taken.term == 2


@on_every_ledger
async def test_a_closed_ledger_is_lost(rig: LedgerRig) -> None:
    ledger = await rig.open()
    await ledger.close()
    with pytest.raises(LedgerLost):
        await ledger.get("k")


@pytest.mark.nats
async def test_a_full_log_gives_up_its_oldest_records_and_goes_on(nats_server: NatsServer) -> None:
    ledger = await small(nats_server)
    try:
        for n in range(1, 41):
            assert await ledger.append("log", bytes([n]) * 1000) == n
        entries = await ledger.read("log")
        first = entries[0].index
        assert 15 < first < 35, "what is left fits into 20,000 bytes"
        assert entries == [Entry(n, bytes([n]) * 1000) for n in range(first, 41)]
        assert [entry.index for entry in await ledger.read("log", start=-3, limit=2)] == [first, first + 1]
        assert await ledger.read("log", start=41) == []
    finally:
        await ledger.close()


@pytest.mark.nats
async def test_records_given_up_during_a_read_are_left_out_of_it(nats_server: NatsServer) -> None:
    ledger = await small(nats_server)
    writer = await small(nats_server)
    try:
        for _ in range(20):
            await ledger.append("log", b"x" * 1000)
        writing = asyncio.create_task(append_many(writer, 400))
        reads = 0
        while not writing.done():
            indexes = [entry.index for entry in await ledger.read("log")]
            assert indexes == list(range(indexes[0], indexes[-1] + 1)), "only the oldest may be missing"
            reads += 1
        await writing
        assert reads > 3
    finally:
        await ledger.close()
        await writer.close()


async def small(server: NatsServer) -> JetStreamLedger:
    """A ledger whose logs keep less than 20 records of 1,000 bytes."""
    return await JetStreamLedger.open(server.url, RealRuntime(), timeout_s=TIMEOUT_S, log_bytes=20_000)


async def append_many(ledger: JetStreamLedger, count: int) -> None:
    for _ in range(count):
        await ledger.append("log", b"x" * 1000)
