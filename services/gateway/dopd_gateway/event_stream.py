"""A streamed answer as an ASGI response, and the watch on the client's connection.

Consumes: an `Answer` and its `Writer`. Produces: server-sent events. A client that hangs up cancels the work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any, TypeVar

from dopd.errors import RequestError
from dopd.obs.log import get_logger
from dopd_gateway.answer import Answer
from dopd_gateway.openai_write import Writer, error_json, event
from dopd_gateway.several import Several
from dopd_proto.asked import Failure

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HELD_BYTES = 16 * 1024
"""Of events that wait for the next one. A system call takes longer than the rest of an event: where the gateway lags
behind the tokens, those that are here already go out together, each still an event of its own."""
INTERNAL = Failure(code="internal_error", message="the gateway failed; its log says why", status=500)


class EventStream:
    """The answer as it comes.

    Not Starlette's StreamingResponse, which says 200 before anything has come: an error before the first token is
    raised here, and so gets its own status.
    """

    def __init__(self, answer: Answer | Several, writer: Writer, headers: Mapping[str, str]) -> None:
        self._answer, self._writer, self._extra = answer, writer, headers
        self._started = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._run(send))
        finally:
            self._answer.close()

    async def _run(self, send: Send) -> None:
        held = b""
        try:
            async with aclosing(self._answer.parts()) as parts:
                async for part in parts:
                    held += self._writer.events(part)
                    if part.end is not None or not self._answer.behind or len(held) > HELD_BYTES:
                        whole, held = held, b""
                        await self._write(send, whole)
        except Exception as error:
            if not self._started and not held:
                raise
            await self._write(send, held + event(error_json(self._failure(error))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, body: bytes) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
        await send({"type": "http.response.body", "body": body, "more_body": True})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            *((name.encode(), value.encode()) for name, value in self._extra.items()),
        ]

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, RequestError):
            return error.failure()
        get_logger().error("stream_failed", request_id=self._answer.request_id, exc_info=error)
        return INTERNAL


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Run to the end, or until the client hangs up: then the work is cancelled and the result is None."""
    working, watching = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
