"""The bus on NATS (nats-py). Core NATS only: JetStream takes seconds to fail over.

Consumes: a broker's address. Produces: `NatsBus`. Publishing never waits: an outbox with one writer task keeps the
order, also over a reconnect. Subscriptions use callbacks, which are 2.5 times as fast as iterators.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as RawSubscription
from nats.nuid import NUID

from dopd.bus import Delivery
from dopd.bus.common import DEFAULT_MAX_PENDING, end_task, refuse_undecodable, shown, within
from dopd.bus.reach import Reach, not_allowed, reach, refusal
from dopd.bus.wire import WireBus
from dopd.errors import BrokerRefuses, BusClosed, BusError
from dopd_proto.base import Message
from dopd_proto.codec import DecodeError, decode
from dopd_proto.subjects import Address

M = TypeVar("M", bound=Message)

_CLOSE_S = 1.0


async def close_client(client: Client) -> None:
    """Close in bounded time and leave nothing behind, also in the middle of a reconnect."""
    with contextlib.suppress(TimeoutError, OSError, nats.errors.Error):
        await within(client.close(), _CLOSE_S)
    # The library cancels this task once, which can be lost: it would reconnect for ever and keep the process alive.
    reconnecting = client._reconnection_task
    if reconnecting is not None and not await end_task(reconnecting):
        raise BusError("the client does not stop reconnecting")
    if client.is_connected:
        await within(client.close(), _CLOSE_S)


class StrictClient(Client):
    """Says no word in the clear where TLS was asked for. The library would, to a broker that offers none."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and "tls" in self.options and not info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        await super()._process_info(info, initial_connection)


class NatsSubscription:
    """A subscription of the library, and whether it is still wanted."""

    def __init__(self, forget: Callable[["NatsSubscription"], None], member: bool) -> None:
        self._forget, self._member = forget, member
        self.active = True
        self.raw: RawSubscription | None = None

    async def stop(self) -> None:
        if self._member and self.raw is not None:
            with contextlib.suppress(TimeoutError, OSError, nats.errors.Error):
                await within(self.raw.drain(), _CLOSE_S)  # type: ignore[no-untyped-call]
        self.active = False
        self._forget(self)
        if self.raw is not None:
            # Already gone is as good as stopped.
            with contextlib.suppress(nats.errors.Error):
                await self.raw.unsubscribe()


class NatsBus(WireBus):
    """The `Bus` of one process. Open with `NatsBus.connect`."""

    def __init__(self, name: str, to: Reach, outbox_bytes: int, max_pending: int, settle_s: float) -> None:
        self._client = StrictClient()
        super().__init__(name, f"{to.inbox}.{NUID().next().decode()}", outbox_bytes)
        self._to, self._opening, self._told = to, True, ""
        self._max_pending, self._settle_s = max_pending, settle_s
        self._since_s: float | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._subscriptions: set[NatsSubscription] = set()
        self._refused: set[str] = set()
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str,
        name: str,
        *,
        ca_file: str = "",
        max_reconnect: int = -1,
        connect_timeout_s: float = 5.0,
        reconnect_wait_s: float = 0.1,
        ping_interval_s: float = 1.0,
        max_pending: int = DEFAULT_MAX_PENDING,
        outbox_bytes: int = 64 * 1024 * 1024,
    ) -> "NatsBus":
        """`url` and `ca_file` as in `reach`. Raises ConfigError for those that cannot be used, BusError when no
        broker answers within `connect_timeout_s`, and BrokerRefuses at once when it does not let us in.

        A broker that is frozen is noticed after two to three `ping_interval_s`.
        """
        # Whoever is back first waits for the others, or what it kept would find nobody subscribed: each tries again
        # once per wait.
        bus = cls(name, reach(url, ca_file), outbox_bytes, max_pending, settle_s=2 * reconnect_wait_s + 0.05)
        try:
            opening = bus._open(
                max_reconnect_attempts=max_reconnect,
                reconnect_time_wait=reconnect_wait_s,
                ping_interval=ping_interval_s,
                max_outstanding_pings=2,
            )
            await within(opening, connect_timeout_s)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await bus._close()
            raise BusError(
                f"no broker at {shown(url)} within {connect_timeout_s} s ({type(error).__name__})"
            ) from error
        except BrokerRefuses as error:
            await bus._close()
            raise BrokerRefuses(f"the broker at {shown(url)}: {error}") from error
        return bus

    @property
    def connected(self) -> bool:
        return self._since_s is not None and bool(self._client.is_connected) and not self._closed

    @property
    def connected_since_s(self) -> float:
        return self._since_s or 0.0

    @property
    def max_payload(self) -> int:
        return int(self._client.max_payload)

    async def drain(self, timeout_s: float = 5.0) -> None:
        if self._closed:
            return
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline_s):
                await self._finish(deadline_s)
        if len(self.outbox):
            self.faults.report("closed", "", f"{len(self.outbox)} messages were never sent")
        await self._close()

    async def _finish(self, deadline_s: float) -> None:
        """Unsubscribe, take what is still coming, finish it, send the answers."""
        raws = [s.raw for s in self._subscriptions if s.raw is not None]
        if self.connected:
            drains = (raw.drain() for raw in raws)  # type: ignore[no-untyped-call]
            await asyncio.gather(*drains, return_exceptions=True)
        # Answers need a moment to go out before the time is up.
        await self._tasks.finish((deadline_s - asyncio.get_running_loop().time()) * 0.9)
        await self.outbox.emptied()
        await self._round_trip()

    async def _close(self) -> None:
        self._closed = True
        self._tasks.cancel()
        if self._writer is not None:
            self._writer.cancel()
        await close_client(self._client)

    async def _open(self, **options: Any) -> None:
        await self._client.connect(
            name=self.name,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            # Subjects come from `Address`, which has checked them.
            skip_subject_validation=True,
            **self._to.options(),
            **options,
        )
        self._opening = False
        self._writer = asyncio.get_running_loop().create_task(self.outbox.run())
        await self._client.subscribe(f"{self.inbox.prefix}.*", cb=self._on_inbox)
        self._ready()
        await self._known(f"{self.inbox.prefix}.*")

    async def _send(self, subject: str, payload: bytes, reply_to: str) -> None:
        try:
            await self._client.publish(subject, payload, reply_to)
        except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError) as error:
            raise ConnectionError(str(error)) from error

    async def _listen(self, to: Address[M], handler: Callable[[Delivery[M]], None], queue: str) -> NatsSubscription:
        if self._closed:
            raise BusClosed(self.name)
        subscription = NatsSubscription(self._subscriptions.discard, member=bool(queue))
        types, faults = to.types, self.faults

        async def take(msg: Msg) -> None:
            if not subscription.active:
                return
            try:
                handler(Delivery(decode(msg.data, types), msg.subject, msg.reply, msg.headers))
            except DecodeError as error:
                refuse_undecodable(msg.subject, msg.reply, error, self.answer, faults)
            except Exception as error:
                faults.report("handler", msg.subject, f"{type(error).__name__}: {error}", error)

        self._refused.discard(to.name.lower())
        raw = await self._client.subscribe(to.name, queue, take, pending_msgs_limit=self._max_pending)
        subscription.raw = raw
        self._subscriptions.add(subscription)
        # Whoever publishes after this returns, on whatever connection, is heard.
        await self._known(to.name)
        return subscription

    async def _known(self, subject: str) -> None:
        """Until the broker knows a subscription. Raises BusError where it does not allow it."""
        await self._round_trip()
        if subject.lower() in self._refused:
            raise BrokerRefuses(f"{self._to.who} may not listen on {subject}")

    async def _on_inbox(self, msg: Msg) -> None:
        nobody = msg.headers is not None and msg.headers.get("Status") == "503"
        self.inbox.take(msg.subject, msg.data, nobody)

    def _ready(self) -> None:
        self._since_s = asyncio.get_running_loop().time()
        self.outbox.reachable(True)

    async def _on_reconnected(self) -> None:
        self._told = ""
        self._settling = asyncio.get_running_loop().call_later(self._settle_s, self._ready)

    async def _on_disconnected(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self._since_s = None
        self.outbox.reachable(False)
        self.inbox.release_marks()
        if not self._closed:
            self.faults.report("disconnected", "", "the broker is out of reach")

    async def _on_closed(self) -> None:
        if not self._closed:
            self._closed = True
            self.faults.report("closed", "", "the connection was given up")

    async def _on_error(self, error: Exception) -> None:
        if why := refusal(error, self._to):
            if self._opening:
                raise BrokerRefuses(why) from error  # ends the library's `connect`, which would try for ever
            if why != self._told:  # once, and not with each try to reconnect
                self._told = why
                self.faults.report("refused", "", why)
            return
        if isinstance(error, nats.errors.SlowConsumerError):
            self.faults.report("slow_consumer", error.subject, f"more than {self._max_pending} messages pending")
        elif self._client.is_connected and not isinstance(error, nats.errors.UnexpectedEOF):
            # Failed tries to reconnect are told once, as `disconnected`.
            self.faults.report("broker", "", f"{type(error).__name__}: {error}")
            verb, subject = not_allowed(error)
            if verb == "publish":
                self.inbox.refuse(subject, f"{self._to.who} may not send there")
            elif verb:
                self._refused.add(subject)
                self.inbox.release_marks()  # nothing comes back if it was our own inbox
