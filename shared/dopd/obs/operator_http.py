"""The operator port: `GET /metrics` and `GET /health` of one service, apart from the public port.

Consumes pages as functions; produces a listener on an address that only operators should reach. As small as it can be,
because every worker has one: one request per connection, bounded in size, time and number.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from dopd.errors import ConfigError
from dopd.obs.log import get_logger

HEAD_BYTES, HEAD_S, MOST_CONNECTIONS = 8192, 5.0, 32

Page = tuple[str, Callable[[], bytes]]
"""Content type, and what makes the text now, or raises `NotYet`."""


class NotYet(Exception):
    """What a page raises that will have something to say later; its text is the answer, with status 503."""


class OperatorHttp:
    """One listener, between `start` and `stop`."""

    def __init__(self, pages: Mapping[str, Page], host: str, port: int) -> None:
        self._pages, self._host, self._port = pages, host, port
        self._server: asyncio.Server | None = None
        self._open = 0

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
        """Take no more connections; those that are open end by themselves within `HEAD_S`."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_CONNECTIONS:
                async with asyncio.timeout(HEAD_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the asker has gone, says nothing, or too much
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0].decode("latin-1")
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


def _response(status: str, kind: str, body: bytes, with_body: bool = True) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (body if with_body else b"")
