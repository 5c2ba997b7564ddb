"""What waits to be sent: a bounded queue that one task empties in order, while the broker is within reach.

Consumes: payloads from `put`, which never waits. Produces: awaited calls of `send`, one after the other.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from dopd.bus.common import FaultBox

_OVERHEAD_BYTES = 128
"""Counted for each message besides its payload, so that small ones cannot fill the memory either."""


class Outbox:
    """Order is kept over reconnects. Beyond `limit_bytes` new messages are dropped, with a fault."""

    def __init__(
        self,
        send: Callable[[str, bytes, str], Awaitable[None]],
        is_wanted: Callable[[str], bool],
        limit_bytes: int,
        faults: FaultBox,
    ) -> None:
        self._send, self._is_wanted, self._limit_bytes, self._faults = send, is_wanted, limit_bytes, faults
        self._queue: deque[tuple[str, bytes, str]] = deque()
        self._bytes, self._dropped = 0, 0
        self._filled, self._reachable, self._empty = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, subject: str, payload: bytes, reply_to: str) -> None:
        """Take a message for sending."""
        size = len(payload) + _OVERHEAD_BYTES
        if self._bytes + size > self._limit_bytes:
            self._drop(subject)
            return
        self._bytes += size
        self._queue.append((subject, payload, reply_to))
        if len(self._queue) == 1:
            self._filled.set()
            self._empty.clear()

    def reachable(self, yes: bool) -> None:
        """Whether the broker can be reached; sending pauses while it cannot."""
        if yes:
            self._reachable.set()
        else:
            self._reachable.clear()

    async def emptied(self) -> None:
        """Wait until all was handed over."""
        await self._empty.wait()

    async def run(self) -> None:
        """The writer. Ends by cancellation."""
        while True:
            await self._filled.wait()
            await self._reachable.wait()
            await self._send_all()

    async def _send_all(self) -> None:
        queue = self._queue
        while queue and self._reachable.is_set():
            subject, payload, reply_to = queue[0]
            # A request that nobody waits for any more would only be stale work on the other side.
            if not reply_to or self._is_wanted(reply_to):
                try:
                    await self._send(subject, payload, reply_to)
                except ConnectionError:
                    self.reachable(False)
                    break
                except Exception as error:
                    self._faults.report("send", subject, f"{type(error).__name__}: {error}", error)
            queue.popleft()
            self._bytes -= len(payload) + _OVERHEAD_BYTES
        if not queue:
            self._filled.clear()
            self._empty.set()
            self._tell_dropped()

    def _drop(self, subject: str) -> None:
        self._dropped += 1
        # The first at once; the rest are counted, or an outage would drown the log.
        if self._dropped == 1:
            self._faults.report("outbox_overflow", subject, f"{len(self._queue)} messages wait; this one is dropped")

    def _tell_dropped(self) -> None:
        if self._dropped > 1:
            self._faults.report("outbox_overflow", "", f"{self._dropped} messages were dropped in all")
        self._dropped = 0
