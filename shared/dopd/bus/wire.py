"""The half of a bus over bytes that knows nothing of the transport: publish, request, stream, serve.

Consumes: messages. Produces: payloads in an `Outbox`, and answers taken from an `Inbox`. A transport adds the
connection and `_listen`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from dopd.bus import BusFault, Delivery, Subscription
from dopd.bus.common import FaultBox, TaskSet, expected, may_answer, respond_to, settle
from dopd.bus.inbox import Asker, Inbox
from dopd.bus.outbox import Outbox
from dopd.errors import BrokerRefuses, BusClosed, BusError, NoResponders, PayloadTooLarge, RequestTimeout
from dopd_proto.base import Message
from dopd_proto.codec import encode
from dopd_proto.request import Failure
from dopd_proto.subjects import Address

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)

_ROUND_TRIP_S = 2.0
"""How long a broker that is connected but silent may hold up a set-up call."""


class StreamSubscription:
    """Answers that come in until it is stopped."""

    def __init__(self, inbox: Inbox, reply_to: str) -> None:
        self._inbox, self._reply_to = inbox, reply_to

    async def stop(self) -> None:
        self._inbox.close(self._reply_to)


class WireBus:
    """What all transports share. The subclass sets `_send`, `_listen`, `connected` and `max_payload`."""

    def __init__(self, name: str, inbox_prefix: str, outbox_bytes: int) -> None:
        self.name, self.faults = name, FaultBox(name)
        self.inbox = Inbox(inbox_prefix, self.faults)
        self.outbox = Outbox(self._send, self.inbox.is_wanted, outbox_bytes, self.faults)
        self._tasks = TaskSet()
        self._closed = False

    @property
    def connected(self) -> bool:
        raise NotImplementedError

    @property
    def max_payload(self) -> int:
        raise NotImplementedError

    async def _send(self, subject: str, payload: bytes, reply_to: str) -> None:
        """Hand over to the connection. Raises ConnectionError when it must be tried again after a reconnect."""
        raise NotImplementedError

    async def _listen(self, to: Address[M], handler: Callable[[Delivery[M]], None], queue: str) -> Subscription:
        raise NotImplementedError

    @property
    def fault_counts(self) -> Mapping[str, int]:
        return self.faults.counts

    def publish(self, to: Address[M], message: M) -> None:
        self._post(to.name, message, "")

    def answer(self, reply_to: str, message: Message) -> None:
        if may_answer(reply_to, self.faults):
            self._post(reply_to, message, "")

    async def request(self, to: Address[M], message: M, replies: tuple[type[R], ...], timeout_s: float) -> R:
        loop = asyncio.get_running_loop()
        got: asyncio.Future[Message] = loop.create_future()
        asker = Asker(
            to.name,
            (*replies, Failure),
            on_answer=lambda answer: settle(got, answer),
            on_nobody=lambda: settle(got, NoResponders(to.name)),
            on_garbage=lambda detail: settle(got, BusError(f"{to.name}: the answer is no message: {detail}")),
            on_refused=lambda detail: settle(got, BrokerRefuses(f"{to.name}: {detail}")),
        )
        reply_to = self.inbox.open(asker)
        late = RequestTimeout(f"{to.name}: no answer within {timeout_s} s")
        timer = loop.call_later(timeout_s, settle, got, late)
        try:
            self._post(to.name, message, reply_to)
            return expected(await got, replies, to.name)
        finally:
            timer.cancel()
            self.inbox.close(reply_to)

    async def stream(
        self, to: Address[M], message: M, replies: tuple[type[R], ...], on_reply: Callable[[R], None]
    ) -> StreamSubscription:
        # None once the caller has gone on, which it does at once while the broker is away.
        nobody: list[str] | None = []
        refused: list[str] = []

        def on_nobody() -> None:
            if nobody is None:
                self.faults.report("no_responders", to.name, "a stream was asked for and nobody listens")
            else:
                nobody.append(to.name)

        asker = Asker(to.name, replies, on_reply, on_nobody, on_garbage=lambda detail: None, on_refused=refused.append)
        reply_to = self.inbox.open(asker)
        try:
            self._post(to.name, message, reply_to)
            await self._round_trip()
            if nobody:
                raise NoResponders(to.name)
            if refused:
                raise BrokerRefuses(f"{to.name}: {refused[0]}")
            nobody = None
        except BaseException:
            self.inbox.close(reply_to)
            raise
        return StreamSubscription(self.inbox, reply_to)

    async def subscribe(self, to: Address[M], handler: Callable[[Delivery[M]], None], queue: str = "") -> Subscription:
        return await self._listen(to, handler, queue)

    async def serve(self, to: Address[M], handler: Callable[[M], Awaitable[Message]], queue: str = "") -> Subscription:
        def take(delivery: Delivery[M]) -> None:
            self._tasks.start(respond_to(delivery, handler, self.answer, self.faults))

        return await self._listen(to, take, queue)

    def on_fault(self, handler: Callable[[BusFault], None]) -> None:
        self.faults.add(handler)

    def _post(self, subject: str, message: Message, reply_to: str) -> None:
        if self._closed:
            raise BusClosed(self.name)
        payload = encode(message)
        if len(payload) > self.max_payload:
            raise PayloadTooLarge(len(payload), self.max_payload)
        self.outbox.put(subject, payload, reply_to)

    async def _round_trip(self) -> None:
        """Until the broker has seen all that was sent before; at once while it is away.

        A message to ourselves, because the library's own flush may overtake what it still has to write.
        """
        if self.connected:
            back = asyncio.Event()
            mark = self.inbox.open_mark(back.set)
            self.outbox.put(mark, b"", "")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(back.wait(), _ROUND_TRIP_S)
            self.inbox.close_mark(mark)
