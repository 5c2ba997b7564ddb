"""Faults that the bus in memory can inject, its repeatability, and its routing against a simple model."""

import asyncio
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from dopd.bus import Delivery
from dopd.bus.memory import MemoryBroker
from dopd.bus.routing import RouteTable, matches
from dopd.errors import BusClosed, RequestTimeout
from dopd.runtime.virtual import run_virtual
from dopd_proto import subjects
from dopd_proto.base import Message
from dopd_proto.request import Abort, Resend, ResendReply

W1 = subjects.ABORT.at(worker_id="w1")
RESEND = subjects.RESEND.at(worker_id="w1")
ASK = Resend(gateway_id="g", request_id="r", attempt=1, index=0)


def abort(attempt: int) -> Abort:
    return Abort(request_id="r", attempt=attempt)


def test_messages_are_lost_delayed_and_doubled_as_the_fault_callback_says() -> None:
    def fault(subject: str, message: Message) -> float | Literal["drop", "duplicate"] | None:
        assert isinstance(message, Abort)
        return {1: "drop", 2: 5.0, 3: "duplicate"}.get(message.attempt)  # type: ignore[return-value]

    async def main() -> list[tuple[int, float]]:
        broker = MemoryBroker(latency_s=0.5, fault=fault)
        bus, seen = broker.connect("b"), []
        loop = asyncio.get_running_loop()
        await bus.subscribe(W1, lambda d: seen.append((d.message.attempt, loop.time())))
        for number in range(5):
            bus.publish(W1, abort(number))
        await asyncio.sleep(10)
        return seen

    assert run_virtual(main()) == [(0, 0.5), (3, 0.5), (3, 0.5), (4, 0.5), (2, 5.5)]


def test_a_killed_bus_says_nothing_more_and_its_requests_time_out_at_the_asker() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        asker, server = broker.connect("a"), broker.connect("s")

        async def serve(message: Resend) -> ResendReply:
            await asyncio.sleep(1)
            return ResendReply()

        await server.serve(RESEND, serve)
        answer = asyncio.ensure_future(asker.request(RESEND, ASK, (ResendReply,), 3.0))
        await asyncio.sleep(0.5)
        server.kill()
        try:
            await answer
        except RequestTimeout:
            assert asyncio.get_running_loop().time() == 3.0
        else:
            raise AssertionError("nobody can have answered")
        try:
            server.publish(W1, abort(1))
        except BusClosed:
            return
        raise AssertionError("a dead process cannot publish")

    run_virtual(main())


def test_a_bus_that_is_cut_off_alone_hears_nothing_and_sends_what_it_kept_when_mended() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        one, other = broker.connect("one"), broker.connect("other")
        heard_by_one: list[int] = []
        heard_by_other: list[int] = []
        await one.subscribe(W1, lambda d: heard_by_one.append(d.message.attempt))
        await other.subscribe(W1, lambda d: heard_by_other.append(d.message.attempt))
        one.on_fault(lambda fault: None)
        one.cut()
        assert (one.connected, other.connected) == (False, True)
        other.publish(W1, abort(1))
        one.publish(W1, abort(2))
        await asyncio.sleep(1)
        assert (heard_by_one, heard_by_other) == ([], [1])
        one.mend()
        await asyncio.sleep(1)
        assert (heard_by_one, heard_by_other) == ([2], [1, 2])
        assert one.connected_since_s == 1.0

    run_virtual(main())


def test_two_handlers_that_answer_each_other_do_not_starve_the_loop() -> None:
    async def main() -> int:
        bus, count = MemoryBroker().connect("b"), 0

        def again(delivery: Delivery[Abort]) -> None:
            nonlocal count
            count += 1
            if count < 1000:
                bus.publish(W1, delivery.message)

        await bus.subscribe(W1, again)
        bus.publish(W1, abort(1))
        for _ in range(10):
            await asyncio.sleep(0)
        return count

    assert 1 <= run_virtual(main()) <= 11


class _Receiver:
    def __init__(self, pattern: str, queue: str) -> None:
        self.pattern, self.queue = pattern, queue


_TOKEN = st.sampled_from(["a", "b", "c"])
_SUBJECT = st.lists(_TOKEN, min_size=1, max_size=4).map(".".join)
_PATTERN = st.tuples(
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3), st.sampled_from(["", ".>"])
).map(lambda parts: ".".join(parts[0]) + parts[1])
_STEP = st.tuples(st.sampled_from(["add", "remove", "route"]), _PATTERN, _SUBJECT, st.sampled_from(["", "q1", "q2"]))


@given(st.lists(_STEP, max_size=40))
def test_the_cached_routes_are_those_that_matching_every_pattern_gives(
    steps: list[tuple[str, str, str, str]],
) -> None:
    table: RouteTable[_Receiver] = RouteTable()
    present: list[_Receiver] = []
    for action, pattern, subject, queue in steps:
        if action == "add":
            # Wildcards and exact subjects take different ways through the table.
            receiver = _Receiver(pattern if len(present) % 2 else subject, queue)
            present.append(receiver)
            table.add(receiver)
        elif action == "remove" and present:
            table.remove(present.pop(len(present) // 2))
        wanted = [r for r in present if matches(r.pattern, subject)]
        picked = table.route(subject).pick()
        assert [r for r in picked if not r.queue] == [r for r in wanted if not r.queue]
        assert [r.queue for r in picked if r.queue] == list(dict.fromkeys(r.queue for r in wanted if r.queue))
        assert set(picked) <= set(wanted)


def test_patterns_match_by_the_rules_of_nats() -> None:
    for pattern, subject, expected in [
        ("a.b", "a.b", True), ("a.*", "a.b", True), ("a.*", "a", False), ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True), ("a.>", "a", False), (">", "a", True), ("*.b", "a.b", True), ("*", "a.b", False),
    ]:  # fmt: skip
        assert matches(pattern, subject) is expected, (pattern, subject)
