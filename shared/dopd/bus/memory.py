"""The bus in memory, for virtual time and tests: a broker object, and one `MemoryBus` for each would-be process.

Consumes: frozen messages, which it passes on as they are. Produces: deliveries in a fixed order, without chance.
Faults are injected by a pure callback, by taking the broker down, or by cutting off or killing one bus.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from dopd.bus import Delivery
from dopd.bus.common import DEFAULT_MAX_PAYLOAD, DEFAULT_MAX_PENDING
from dopd.bus.memory_client import MemoryBus, MemorySubscription
from dopd.bus.routing import RouteTable
from dopd_proto.base import Message

__all__ = ["Fault", "MemoryBroker", "MemoryBus"]

Fault = Callable[[str, Message], float | Literal["drop", "duplicate"] | None]
"""What happens to a message: nothing, so many seconds of delay, loss, or a second delivery."""


class MemoryBroker:
    """Routes messages between its buses. Everything takes `latency_s`, in the order it was sent."""

    def __init__(
        self,
        latency_s: float = 0.0,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_pending: int = DEFAULT_MAX_PENDING,
        check_payload: bool = True,
        fault: Fault | None = None,
    ) -> None:
        self.latency_s, self.max_payload, self.max_pending = latency_s, max_payload, max_pending
        self.check_payload, self.fault = check_payload, fault
        self.routes: RouteTable[MemorySubscription] = RouteTable()
        self.is_down = False
        # A dict, because it keeps the order.
        self.buses: dict[MemoryBus, None] = {}
        self._way: deque[tuple[float, tuple[MemorySubscription, ...], Delivery[Any]]] = deque()
        self._armed = False
        self._serial = itertools.count(1)

    def connect(self, name: str) -> "MemoryBus":
        """A bus for one would-be process. Needs a running loop."""
        bus = MemoryBus(self, name, f"_INBOX.{next(self._serial)}")
        self.buses[bus] = None
        return bus

    def down(self) -> None:
        """As if the server had died: nothing gets through, what is published waits in its bus."""
        self.is_down = True
        for bus in self.buses:
            bus.cut()

    def up(self) -> None:
        """As if it were back on the same port."""
        self.is_down = False
        # Two rounds: in reality, too, subscriptions are back before a reconnected client sends what it kept.
        for bus in self.buses:
            bus.restore()
        for bus in self.buses:
            bus.mend()

    def inject(self, subject: str, payload: bytes, reply_to: str = "") -> None:
        """Bytes as they would come from a stranger; receivers decode them."""
        self.send(subject, payload, reply_to)

    def send(self, subject: str, message: Any, reply_to: str) -> bool:
        """On its way. False when nobody listens."""
        verdict = self.fault(subject, message) if self.fault is not None else None
        receivers = self.routes.route(subject).pick()
        if not receivers:
            return False
        if verdict is None:
            self._start(receivers, Delivery(message, subject, reply_to))
        elif verdict == "duplicate":
            for _ in range(2):
                self._start(receivers, Delivery(message, subject, reply_to))
        elif verdict != "drop":
            delivery = Delivery(message, subject, reply_to)
            asyncio.get_running_loop().call_later(verdict, self._start, receivers, delivery)
        return True

    def _start(self, receivers: tuple[MemorySubscription, ...], delivery: Delivery[Any]) -> None:
        for receiver in receivers:
            if receiver.pending >= self.max_pending:
                receiver.bus.faults.report("slow_consumer", delivery.subject, f"{receiver.pending} messages pending")
                receivers = tuple(r for r in receivers if r is not receiver)
            else:
                receiver.pending += 1
        loop = asyncio.get_running_loop()
        self._way.append((loop.time() + self.latency_s, receivers, delivery))
        if not self._armed:
            self._arm(loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed = True
        if self.latency_s:
            loop.call_at(self._way[0][0], self._pump)
        else:
            loop.call_soon(self._pump)

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        # The loop itself fires a timer up to its resolution early. What handlers send now waits for the next round.
        now = loop.time() + 1e-9
        for _ in range(len(self._way)):
            if self._way[0][0] > now:
                break
            _, receivers, delivery = self._way.popleft()
            for receiver in receivers:
                receiver.deliver(delivery)
        self._armed = False
        if self._way:
            self._arm(loop)
