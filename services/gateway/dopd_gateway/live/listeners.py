"""Browsers that follow the page: server-sent events over connections of the operator port.

Consumes connections, the document for a new one, and changes of it; produces `snapshot` and `update` events. Bounded in
number, and in what waits for each: whoever does not read is dropped, and a browser then begins anew by itself.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from dopd.obs.operator_http import head

MOST_LISTENERS = 12
HELD_BYTES = 512 * 1024
"""What may wait for one listener besides the operating system's own buffers."""
UNREAD_S = 15.0
"""How long something may wait."""
RETRY_MS = 2000


class Listeners:
    """Those that are connected now."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        """`document` makes what a new listener is told first; what it is told afterwards are changes of that."""
        self._document = document
        self._read_s: dict[asyncio.StreamWriter, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._read_s)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, whose request has been read; until it ends, is dropped, or says one more byte."""
        if len(self._read_s) >= MOST_LISTENERS:
            text = f"{MOST_LISTENERS} listen already\n".encode()
            writer.write(head("503 Service Unavailable", "text/plain", len(text), "Retry-After: 10") + text)
            return
        first = f"retry: {RETRY_MS}\n\n".encode() + event("snapshot", self._document())
        writer.write(head("200 OK", "text/event-stream; charset=utf-8") + first)
        self._read_s[writer] = asyncio.get_running_loop().time()
        try:
            await reader.read(1)
        finally:
            self._read_s.pop(writer, None)

    def tell(self, what: bytes) -> None:
        """An event for all. Returns at once."""
        now_s = asyncio.get_running_loop().time()
        for writer, read_s in list(self._read_s.items()):
            held = writer.transport.get_write_buffer_size()
            if not held:
                self._read_s[writer] = now_s
            elif held + len(what) > HELD_BYTES or now_s - read_s > UNREAD_S:
                self._drop(writer)
                continue
            writer.write(what)

    def close(self) -> None:
        """End all of them."""
        for writer in list(self._read_s):
            writer.close()
        self._read_s.clear()

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self.dropped += 1
        self._read_s.pop(writer, None)
        writer.transport.abort()


def event(name: str, about: dict[str, Any]) -> bytes:
    """One event; JSON has no line breaks of its own."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(about) + b"\n\n"
