"""The public NATS side: `dopd.v1.generate`, answered once, or streamed to the caller's inbox.

Consumes: `Generate` from the bus (one gateway of the queue group gets each), a `TextGateway`. Produces: `Chunk`s and a
`Completion`, or a `Failure`. NATS does not tell when a caller has gone; the request's deadline bounds the work.
"""

from contextlib import aclosing

from msgspec.structs import replace

from dopd.bus import Bus, Delivery, Subscription
from dopd.bus.common import TaskSet
from dopd.errors import BusError, RequestError
from dopd.obs.log import get_logger
from dopd_gateway.api import TextGateway
from dopd_proto.base import Message
from dopd_proto.request import Failure, Generate
from dopd_proto.subjects import GENERATE

QUEUE_GROUP = "gateway"


class NatsApi:
    """Answers requests between `start` and `stop`."""

    def __init__(self, bus: Bus, api: TextGateway) -> None:
        self._bus, self._api = bus, api
        self._tasks = TaskSet()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Join the queue group."""
        self._subscription = await self._bus.subscribe(GENERATE.at(), self._take, queue=QUEUE_GROUP)

    async def stop(self, timeout_s: float) -> None:
        """Leave the queue group; requests in hand have so long to finish, then they are aborted."""
        if self._subscription is not None:
            await self._subscription.stop()
        await self._tasks.finish(timeout_s)

    def _take(self, delivery: Delivery[Generate]) -> None:
        if delivery.reply_to:
            self._tasks.start(self._serve(delivery.reply_to, _in_trace(delivery)))
        else:
            get_logger().warning("request_without_inbox_ignored", subject=delivery.subject)

    async def _serve(self, inbox: str, request: Generate) -> None:
        try:
            await self._answer(inbox, request)
        except RequestError as error:
            self._send_last(inbox, error.failure())
        except BusError as error:
            get_logger().warning("answer_not_sent", error=type(error).__name__, detail=str(error))
        except Exception:
            get_logger().error("request_failed", exc_info=True)
            message = "the gateway failed; its log says why"
            self._send_last(inbox, Failure(code="internal_error", message=message, status=500))

    async def _answer(self, inbox: str, request: Generate) -> None:
        if not request.stream:
            self._bus.answer(inbox, await self._api.complete(request))
            return
        async with aclosing(self._api.stream(request)) as messages:
            async for message in messages:
                self._bus.answer(inbox, message)

    def _send_last(self, inbox: str, message: Message) -> None:
        try:
            self._bus.answer(inbox, message)
        except BusError as error:
            get_logger().warning("answer_not_sent", error=type(error).__name__, detail=str(error))


def _in_trace(delivery: Delivery[Generate]) -> Generate:
    """The request, in the trace that the message's `traceparent` header names unless the request names one itself."""
    request = delivery.message
    traceparent = delivery.headers.get("traceparent", "") if delivery.headers else ""
    return replace(request, traceparent=traceparent) if traceparent and not request.traceparent else request
