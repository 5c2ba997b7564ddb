"""The public NATS side: `dopd.v1.generate` and `dopd.v1.chat`, answered once, or streamed; and `dopd.v1.models`.

Consumes: `Generate`, `Chat` and `ModelsRequest` from the bus (one gateway of the queue group gets each), a
`TextGateway`. Produces: `Chunk`s and a `Completion`, a `ModelsReply`, or a `Failure`. NATS does not tell when a caller
has gone; the request's deadline bounds the work.
"""

from collections import Counter
from contextlib import aclosing

from dopd.bus import Bus, Delivery, Subscription
from dopd.bus.common import TaskSet
from dopd.errors import BusError, RequestError
from dopd.obs.log import get_logger
from dopd_gateway.api import TextGateway
from dopd_gateway.discovery import Endpoint
from dopd_gateway.gate import caller
from dopd_gateway.headers import key_of, trace_id_of, with_headers
from dopd_gateway.keys import Keys
from dopd_proto.asked import Chat, Failure, Generate, ModelsReply, ModelsRequest
from dopd_proto.base import Message
from dopd_proto.subjects import CHAT, GENERATE, MODELS

QUEUE_GROUP = "gateway"
ANSWERED = {"encoding": "MessagePack", "answer": "Completion, or with stream: Chunk..., Completion; or Failure"}
TOLD = {"encoding": "MessagePack", "answer": "ModelsReply"}


class NatsApi:
    """Answers requests between `start` and `stop`."""

    def __init__(self, bus: Bus, api: TextGateway, keys: Keys | None = None) -> None:
        """The broker's users say who may ask. With `keys` a key that is sent must be known, and its owner pays."""
        self._bus, self._api, self._keys = bus, api, keys
        self.endpoints = {
            subject.name: Endpoint(subject.name.rpartition(".")[2], subject.name, QUEUE_GROUP, about)
            for subject, about in ((GENERATE.at(), ANSWERED), (CHAT.at(), ANSWERED), (MODELS.at(), TOLD))
        }
        self.failures: Counter[str] = Counter()
        self._tasks = TaskSet()
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Join the queue group."""
        self._subscriptions = [
            await self._bus.subscribe(GENERATE.at(), self._take, queue=QUEUE_GROUP),
            await self._bus.subscribe(CHAT.at(), self._take, queue=QUEUE_GROUP),
            await self._bus.subscribe(MODELS.at(), self._tell, queue=QUEUE_GROUP),
        ]

    async def stop(self, timeout_s: float) -> None:
        """Leave the queue group; requests in hand have so long to finish, then they are aborted."""
        for subscription in self._subscriptions:
            await subscription.stop()
        await self._tasks.finish(timeout_s)

    def _take(self, delivery: Delivery[Generate] | Delivery[Chat]) -> None:
        if delivery.reply_to:
            self._tasks.start(self._serve(delivery.reply_to, delivery))
        else:
            get_logger().warning("request_without_inbox_ignored", subject=delivery.subject)

    def _tell(self, delivery: Delivery[ModelsRequest]) -> None:
        if delivery.reply_to:
            self._send_last(delivery.reply_to, ModelsReply(models=(self._api.card(),)))
            self.endpoints[delivery.subject].ended(0.0)

    async def _serve(self, inbox: str, delivery: Delivery[Generate] | Delivery[Chat]) -> None:
        began_s, failure, log = self._api.now(), None, get_logger().bind(subject=delivery.subject)
        try:
            headers = {name.lower(): value for name, value in (delivery.headers or {}).items()}
            request = with_headers(delivery.message, headers)
            log = log.bind(trace_id=trace_id_of(request.traceparent))
            await self._answer(inbox, request, self._paying(key_of(headers)))
        except RequestError as error:
            failure = error.failure()
        except BusError as error:
            log.warning("answer_not_sent", error=type(error).__name__, detail=str(error))
        except Exception:
            log.error("request_failed", exc_info=True)
            failure = Failure(code="internal_error", message="the gateway failed; its log says why", status=500)
        if failure is not None:
            self._send_last(inbox, failure)
            self.failures[failure.code] += 1
        error_text = "" if failure is None else f"{failure.status}:{failure.code}"
        self.endpoints[delivery.subject].ended(self._api.now() - began_s, error_text)

    def _paying(self, key: str) -> str:
        if not key or self._keys is None or not self._keys.wanted:
            return key
        return caller(self._keys, key, self._api.now())

    async def _answer(self, inbox: str, request: Generate | Chat, key: str) -> None:
        if not request.stream:
            self._bus.answer(inbox, await self._api.complete(request, key))
            return
        async with aclosing(self._api.stream(request, key)) as messages:
            async for message in messages:
                self._bus.answer(inbox, message)

    def _send_last(self, inbox: str, message: Message) -> None:
        try:
            self._bus.answer(inbox, message)
        except BusError as error:
            get_logger().warning("answer_not_sent", error=type(error).__name__, detail=str(error))
