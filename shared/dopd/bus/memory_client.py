"""One would-be process on the bus in memory: its subscriptions, requests, and what it keeps while cut off.

Consumes: a `MemoryBroker`. Produces: the `Bus` that services see; a `MemoryBus` comes from `MemoryBroker.connect`.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dopd.bus import BusFault, Delivery
from dopd.bus.common import FaultBox, TaskSet, expected, may_answer, refuse_undecodable, respond_to, settle
from dopd.errors import BusClosed, NoResponders, PayloadTooLarge, RequestTimeout
from dopd_proto.base import Message
from dopd_proto.codec import DecodeError, decode, encode
from dopd_proto.subjects import Address

if TYPE_CHECKING:
    from dopd.bus.memory import MemoryBroker

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
_POLL_S = 1e-4  # of what is on its way


class MemorySubscription:
    """Where messages of one pattern go. `pending` counts what is on its way."""

    __slots__ = ("active", "bus", "handler", "pattern", "pending", "queue", "types")

    def __init__(
        self, bus: "MemoryBus", to: Address[Any], handler: Callable[[Delivery[Any]], None], queue: str = ""
    ) -> None:
        self.bus, self.pattern, self.types, self.handler, self.queue = bus, to.name, to.types, handler, queue
        self.pending, self.active = 0, True

    async def stop(self) -> None:
        if self.queue and self.active:
            self.bus.forget(self)
            while self.pending:  # noqa: ASYNC110 - who delivers sets no event
                await asyncio.sleep(_POLL_S)
        self.close()

    def close(self) -> None:
        self.active = False
        self.bus.forget(self)

    def deliver(self, delivery: Delivery[Any]) -> None:
        self.pending -= 1
        if not self.active:
            return
        try:
            if delivery.message.__class__ is bytes:
                delivery = Delivery(decode(delivery.message, self.types), delivery.subject, delivery.reply_to)
            self.handler(delivery)
        except DecodeError as error:
            refuse_undecodable(delivery.subject, delivery.reply_to, error, self.bus.answer, self.bus.faults)
        except Exception as error:
            self.bus.faults.report("handler", delivery.subject, f"{type(error).__name__}: {error}", error)


class MemoryBus:
    """The `Bus` of one would-be process."""

    def __init__(self, broker: "MemoryBroker", name: str, inbox: str) -> None:
        self.name, self.faults = name, FaultBox(name)
        self._broker, self._inbox = broker, inbox
        self._check = broker.check_payload
        self._numbers = itertools.count(1)
        # A dict, because it keeps the order and forgets one in constant time.
        self._subscriptions: dict[MemorySubscription, None] = {}
        self._kept: deque[tuple[str, Message, str]] = deque()
        self._nobody: dict[str, Callable[[], None]] = {}
        self._tasks = TaskSet()
        self._closed, self._cut = False, broker.is_down
        self._since_s = asyncio.get_running_loop().time()

    @property
    def connected(self) -> bool:
        return not (self._cut or self._closed)

    @property
    def connected_since_s(self) -> float:
        return self._since_s

    @property
    def max_payload(self) -> int:
        return self._broker.max_payload

    @property
    def fault_counts(self) -> Mapping[str, int]:
        return self.faults.counts

    def publish(self, to: Address[M], message: M) -> None:
        self._send(to.name, message, "")

    def answer(self, reply_to: str, message: Message) -> None:
        if may_answer(reply_to, self.faults):
            self._send(reply_to, message, "")

    async def request(self, to: Address[M], message: M, replies: tuple[type[R], ...], timeout_s: float) -> R:
        loop = asyncio.get_running_loop()
        got: asyncio.Future[Message] = loop.create_future()
        inbox = self._open_inbox(lambda delivery: settle(got, delivery.message))
        self._nobody[inbox.pattern] = lambda: settle(got, NoResponders(to.name))
        late = RequestTimeout(f"{to.name}: no answer within {timeout_s} s")
        timer = loop.call_later(timeout_s, settle, got, late)
        try:
            self._send(to.name, message, inbox.pattern)
            return expected(await got, replies, to.name)
        finally:
            timer.cancel()
            inbox.close()

    async def stream(
        self, to: Address[M], message: M, replies: tuple[type[R], ...], on_reply: Callable[[R], None]
    ) -> MemorySubscription:
        def take(delivery: Delivery[Any]) -> None:
            if isinstance(delivery.message, replies):
                on_reply(delivery.message)
            else:
                raise DecodeError(f"{type(delivery.message).__name__} is no answer to {to.name}")

        nobody: list[str] = []
        inbox = self._open_inbox(take)
        self._nobody[inbox.pattern] = lambda: nobody.append(to.name)
        try:
            self._send(to.name, message, inbox.pattern)
            if nobody:
                raise NoResponders(to.name)
        except BaseException:
            inbox.close()
            raise
        return inbox

    async def subscribe(
        self, to: Address[M], handler: Callable[[Delivery[M]], None], queue: str = ""
    ) -> MemorySubscription:
        return self._open(MemorySubscription(self, to, handler, queue))

    async def serve(
        self, to: Address[M], handler: Callable[[M], Awaitable[Message]], queue: str = ""
    ) -> MemorySubscription:
        def take(delivery: Delivery[M]) -> None:
            self._tasks.start(respond_to(delivery, handler, self.answer, self.faults))

        return self._open(MemorySubscription(self, to, take, queue))

    def on_fault(self, handler: Callable[[BusFault], None]) -> None:
        self.faults.add(handler)

    async def drain(self, timeout_s: float = 5.0) -> None:
        if self._closed:
            return
        for subscription in self._subscriptions:
            self._broker.routes.remove(subscription)
        # Until what is on its way to us has come in, and what it began is done.
        await asyncio.sleep(min(self._broker.latency_s, timeout_s))
        await asyncio.sleep(0)
        await self._tasks.finish(timeout_s - self._broker.latency_s)
        self.kill()

    def kill(self) -> None:
        """As if the process had died: nothing is finished, nothing more comes or goes."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close()
        self._kept.clear()
        self._tasks.cancel()
        self._broker.buses.pop(self, None)

    def cut(self) -> None:
        """As if the network between us and the broker had failed."""
        if self._cut:
            return
        self._cut = True
        self.faults.report("disconnected", "", "the broker is out of reach")
        for subscription in self._subscriptions:
            self._broker.routes.remove(subscription)

    def restore(self) -> None:
        """Subscriptions as they were before `cut`; there is no harm in twice."""
        for subscription in self._subscriptions:
            self._broker.routes.add(subscription)

    def mend(self) -> None:
        """The end of `cut`: everything is subscribed again, then what was kept is sent."""
        self.restore()
        self._cut, self._since_s = False, asyncio.get_running_loop().time()
        while self._kept:
            subject, message, reply_to = self._kept.popleft()
            # A request that nobody waits for any more would only be stale work on the other side.
            if not reply_to or reply_to in self._nobody:
                self._pass_on(subject, message, reply_to)

    def forget(self, subscription: MemorySubscription) -> None:
        self._subscriptions.pop(subscription, None)
        self._nobody.pop(subscription.pattern, None)
        self._broker.routes.remove(subscription)

    def _open(self, subscription: MemorySubscription) -> MemorySubscription:
        if self._closed:
            raise BusClosed(self.name)
        self._subscriptions[subscription] = None
        if not self._cut:
            self._broker.routes.add(subscription)
        return subscription

    def _open_inbox(self, handler: Callable[[Delivery[Any]], None]) -> MemorySubscription:
        inbox: Address[Message] = Address(f"{self._inbox}.{next(self._numbers)}", (Message,))
        return self._open(MemorySubscription(self, inbox, handler))

    def _send(self, subject: str, message: Message, reply_to: str) -> None:
        if self._closed:
            raise BusClosed(self.name)
        if self._check:
            size = len(encode(message))
            if size > self._broker.max_payload:
                raise PayloadTooLarge(size, self._broker.max_payload)
        if self._cut:
            self._kept.append((subject, message, reply_to))
        else:
            self._pass_on(subject, message, reply_to)

    def _pass_on(self, subject: str, message: Message, reply_to: str) -> None:
        if not self._broker.send(subject, message, reply_to) and reply_to in self._nobody:
            self._nobody[reply_to]()
