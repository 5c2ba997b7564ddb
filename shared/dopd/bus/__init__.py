"""The bus seam: typed publish, subscribe and request/reply over subjects.

Two implementations with one contract suite: `memory` (virtual time, tests) and `nats_bus` (real). Promises of both:
messages of one publisher on one subject arrive in order; each queue group member set gets a message once; `*` matches
one subject token; a payload that cannot be decoded is reported, and answered
with a `Failure` where it names an inbox; nothing waits without a deadline.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from dopd_proto.base import Message
from dopd_proto.subjects import Address

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)


class Delivery(msgspec.Struct, Generic[M], frozen=True):
    """A message as it came in: where it was sent, where an answer goes (empty: none is expected), foreign headers.

    A Struct because a frozen dataclass takes several times as long to make, and there is one for each message.
    """

    message: M
    subject: str
    reply_to: str = ""
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class BusFault:
    """Something that went wrong outside of any call: a slow consumer, bytes that are no message, a failed handler."""

    kind: str
    subject: str
    detail: str


class Subscription(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """No further deliveries after this returns.

        A member of a queue group first takes what was given to it, for nobody else gets that.
        """


class Bus(Protocol):
    """One connection of one process.

    Handlers of `subscribe` are plain functions and must return quickly; those of `serve` may wait, each request runs
    as its own task.
    """

    @property
    def connected(self) -> bool:
        """Whether the broker is within reach now. While it is not, nobody's silence means anything."""

    @property
    def connected_since_s(self) -> float:
        """The loop's time (`loop.time()`) at which the present connection began."""

    @property
    def max_payload(self) -> int:
        """The largest message in bytes."""

    @property
    def fault_counts(self) -> Mapping[str, int]:
        """Faults so far, by kind."""

    def publish(self, to: Address[M], message: M) -> None:
        """Send without waiting; kept and sent later while the broker is away.

        Raises PayloadTooLarge (before anything is sent) or BusClosed.
        """

    def answer(self, reply_to: str, message: Message) -> None:
        """Send to an inbox that a `Delivery` named; to a subject of ours it is not sent, but a fault. Raises like
        `publish`."""

    async def request(self, to: Address[M], message: M, replies: tuple[type[R], ...], timeout_s: float) -> R:
        """Send and wait for one answer.

        Raises NoResponders at once when nobody listens, BrokerRefuses when we may not ask that, RequestTimeout,
        PayloadTooLarge, BusClosed, or the RequestError that a `Failure` answer stands for.
        """

    async def stream(
        self, to: Address[M], message: M, replies: tuple[type[R], ...], on_reply: Callable[[R], None]
    ) -> Subscription:
        """Send a request whose many answers go to `on_reply`, until the returned subscription is stopped.

        Returns once the broker has taken the request, at once while it is away. Raises NoResponders when nobody
        listens, BrokerRefuses, PayloadTooLarge or BusClosed. `on_reply` gets messages only: list Failure among
        `replies` to see errors of the other side. Whether and when an answer comes is the caller's to watch.
        """

    async def subscribe(self, to: Address[M], handler: Callable[[Delivery[M]], None], queue: str = "") -> Subscription:
        """Call `handler` for each message. With `queue`, one member of the group gets each. Raises BrokerRefuses."""

    async def serve(self, to: Address[M], handler: Callable[[M], Awaitable[Message]], queue: str = "") -> Subscription:
        """Answer requests. A RequestError from the handler becomes a `Failure` answer, any other exception a 500."""

    def on_fault(self, handler: Callable[[BusFault], None]) -> None:
        """Be told of faults; a bus without a handler logs them."""

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Stop taking, finish what was taken, flush, close. Later calls raise BusClosed."""
