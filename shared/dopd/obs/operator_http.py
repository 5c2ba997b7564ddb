"""The operator port: `GET /metrics`, `/health` and `/ready` of one service, apart from the public port.

Consumes pages as functions; produces a listener on an address that only operators should reach. As small as it can be,
because every worker has one: one request per connection, bounded in size, time and number. A service may add pages, and
streams, which keep their connections.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from dopd.errors import ConfigError
from dopd.obs.log import get_logger

HEAD_BYTES, HEAD_S, MOST_CONNECTIONS = 8192, 5.0, 32

Page = tuple[str, Callable[[], bytes]]
"""Content type, and what makes the text now, or raises `NotYet`."""

Stream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Answers a request that has been read, for as long as it wants to; it bounds itself."""
SAFE = (
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
    "Cross-Origin-Resource-Policy: same-origin",
    "Cache-Control: no-cache",
)
"""A browser that shows a page asks nobody else, runs no other script, and lets no other site have it."""


class NotYet(Exception):
    """What a page raises that will have something to say later; its text is the answer, with status 503."""


class OperatorHttp:
    """One listener, between `start` and `stop`."""

    def __init__(self, pages: Mapping[str, Page], host: str, port: int) -> None:
        self._pages, self._host, self._port = dict(pages), host, port
        self._streams: dict[str, Stream] = {}
        self._server: asyncio.Server | None = None
        self._open = 0

    def page(self, path: str, page: Page) -> None:
        """One more page."""
        self._pages[path] = page

    def stream(self, path: str, stream: Stream) -> None:
        """One more stream."""
        self._streams[path] = stream

    async def start(self) -> str:
        """Listen; the URL. With port 0 the system picks one. Raises ConfigError when the port is taken."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=HEAD_BYTES)
        except OSError as error:
            where = f"cannot listen on {self._host}:{self._port} ({error.strerror or error})"
            raise ConfigError("config", "observability.operator_port", where) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def stop(self) -> None:
        """Take no more connections; those that are open end by themselves within `HEAD_S`, streams as they will."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_CONNECTIONS:
                async with asyncio.timeout(HEAD_S):
                    asked = await reader.readuntil(b"\r\n\r\n")
                    stream = self._streams.get(_path(asked)) if asked.startswith(b"GET ") else None
                    if stream is None:
                        writer.write(self._answer(asked))
                        await writer.drain()
                if stream is not None:
                    await stream(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the asker has gone, says nothing, or too much
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, asked: bytes) -> bytes:
        method, path = asked.partition(b" ")[0], _path(asked)
        if path not in self._pages:
            return _response("404 Not Found", "text/plain", f"here are {', '.join(self._pages)}\n".encode())
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET it\n")
        kind, make = self._pages[path]
        try:
            body = make()
        except NotYet as reason:
            return _response("503 Service Unavailable", "text/plain", f"{reason}\n".encode())
        except Exception:
            get_logger().error("operator_page_failed", path=path, exc_info=True)
            return _response("500 Internal Server Error", "text/plain", b"the log says why\n")
        return _response("200 OK", kind, body, with_body=method == b"GET")


def head(status: str, kind: str, length: int | None = None, *more: str) -> bytes:
    """The head of an answer. One without a length goes on until the connection ends."""
    lengths = () if length is None else (f"Content-Length: {length}",)
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", *lengths, "Connection: close", *SAFE, *more)
    return "\r\n".join((*lines, "", "")).encode()


def _path(asked: bytes) -> str:
    return asked.partition(b" ")[2].split(b" ", 1)[0].split(b"?", 1)[0].decode("latin-1")


def _response(status: str, kind: str, body: bytes, with_body: bool = True) -> bytes:
    return head(status, kind, len(body)) + (body if with_body else b"")
