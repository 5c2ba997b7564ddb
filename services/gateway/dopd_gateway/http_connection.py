"""What one client's connection may take: how many there are, and how long and how large a request's parts may be.

Consumes: bytes of one connection, `HttpConfig`. Produces: uvicorn's protocol with limits, which uvicorn itself lacks:
it keeps any number of header bytes, and waits for a request's end, or for a reader, as long as it takes. Whoever
exceeds a limit gets an answer in OpenAI's shape where one can still be written, and loses the connection.
"""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dopd.config import HttpConfig
from dopd_gateway.openai_write import error_json
from dopd_proto.request import Failure

MAX_HEADERS = 100
MAX_PIPELINED = 16
AT_THE_DOOR = 64
"""So many connections too many are told so; more are cut."""
_LINGER_S = 2.0
"""How long a client may take to read a last answer. What it still sends is dropped: to hang up on it would take the
answer away from it, too."""
_OVERHEAD = 8
"""Bytes that may come for each byte of a body: chunks of one byte take six."""

_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass
class Room:
    """What all connections of a server share: the limits, how many are open, those about to be closed among them, and
    the bytes held of requests that are not complete. `refused` and `cut` count connections that were ended by a limit:
    with an answer, by its code, and without one."""

    config: HttpConfig
    max_connections: int
    open: int = 0
    held_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def protocol(self) -> Callable[..., "GuardedConnection"]:
        """What uvicorn calls for each connection."""

        def connection(*args: Any, **kwargs: Any) -> GuardedConnection:
            return GuardedConnection(self, *args, **kwargs)

        return connection


class GuardedConnection(HttpToolsProtocol):
    """One connection. At any time it waits for one thing, and `_watch` ends it when that does not come."""

    def __init__(self, room: Room, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._room, self._limits = room, room.config
        self._watching: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._crowded = self._refused = self._lost = False
        self._in_head = self._in_body = False
        self._head_bytes = self._raw_bytes = self._body_bytes = self._held_bytes = 0
        self._cycles: list[RequestResponseCycle] = []

    # --- the connection -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._room.open += 1
        if self._room.open > self._room.max_connections + AT_THE_DOOR:
            self._cut_counted()
        # One too many is told so once it has sent something: a client looks for an answer only then.
        self._crowded = len(self.connections) > self._room.max_connections
        self._watch(_LINGER_S if self._crowded else self._limits.header_timeout_s, self._head_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._room.open -= 1
        self._watch(None)
        self._hold(0)
        self.resume_writing()
        self._tell_gone()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._crowded:
            self._refuse(503, "unavailable", f"there are {self._room.max_connections} connections already", True)
            return
        self._raw_bytes += len(data)
        super().data_received(data)
        self._look_again()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refuse(400, "invalid_request_error", "this is no HTTP/1.1 request")

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    # --- the request --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._in_body = True, False
        self._head_bytes = self._body_bytes = 0
        if self._idle():
            self._watch(self._limits.header_timeout_s, self._head_overdue)

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        # Trailers come here, too; nobody reads them.
        if self._in_head and self._head_bytes <= self._limits.max_header_bytes and len(self.headers) <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_bytes > self._limits.max_header_bytes or len(self.headers) > MAX_HEADERS:
            self._refuse_head()
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(400, "invalid_request_error", f"more than {MAX_PIPELINED} requests wait on this connection")
        if self._refused:
            return
        self._in_body = True
        self._watch(self._limits.body_timeout_s, self._body_overdue)
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._refused:
            return
        if self.cycle.response_complete:
            self._raw_bytes -= len(body)  # answered already: it is dropped, not held
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._raw_bytes = 0
        self._hold(0)
        if self._refused:
            return
        self._watch(None)
        super().on_message_complete()
        if self.cycle.response_complete:
            self._keep_alive()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._cut_unread(self._limits.write_timeout_s)
        elif self._in_body:
            self._unset_keepalive_if_required()  # the rest of the request is on its way, and is watched
        elif self._in_head:
            self._unset_keepalive_if_required()
            self._watch(self._limits.header_timeout_s, self._head_overdue)

    # --- a reader -----------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.write_timeout_s, self._cut_counted)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    # --- limits -------------------------------------------------------------------------------------------------

    def _watch(self, timeout_s: float | None, overdue: Callable[[], None] | None = None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = None if timeout_s is None or overdue is None else self.loop.call_later(timeout_s, overdue)

    def _idle(self) -> bool:
        """No answer is due."""
        return all(cycle.response_complete for cycle in self._cycles)

    def _answering(self) -> bool:
        """An answer has begun, or more than one is due: another one may not be written between."""
        due = [cycle for cycle in self._cycles if not cycle.response_complete]
        return len(due) > 1 or any(cycle.response_started for cycle in due)

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _head_overdue(self) -> None:
        if self._in_head:
            self._refuse(408, "request_timeout", f"no whole header came in {self._limits.header_timeout_s:g} s")
        else:
            self._close()

    def _body_overdue(self) -> None:
        if self.pipeline or self.flow.read_paused:  # it is we who are slow: the answer before is under way
            self._watch(self._limits.body_timeout_s, self._body_overdue)
        else:
            self._refuse(408, "request_timeout", f"no whole body came in {self._limits.body_timeout_s:g} s")

    def _look_again(self) -> None:
        """After each piece."""
        if self._refused or self.transport.is_closing():
            return
        if self._in_head or self._in_body:
            self._check_sizes()
        elif self._idle():
            self._keep_alive()  # empty lines begin no request

    def _check_sizes(self) -> None:
        self._hold(self._raw_bytes)
        if self._in_head and self._raw_bytes > self._limits.max_header_bytes:
            self._refuse_head()
        elif self._raw_bytes > self._limits.max_header_bytes + (1 + _OVERHEAD) * self._body_bytes:
            self._refuse(400, "invalid_request_error", "the body's chunks have more around them than in them")
        elif self._room.held_bytes > self._limits.max_receiving_mb * 2**20:
            self._refuse(503, "unavailable", "too many requests are being received", True)

    def _refuse_head(self) -> None:
        limit = f"the request's header has more than {self._limits.max_header_bytes} bytes or {MAX_HEADERS} fields"
        self._refuse(431, "header_too_large", limit)

    def _hold(self, size_bytes: int) -> None:
        self._room.held_bytes += size_bytes - self._held_bytes
        self._held_bytes = size_bytes

    def _refuse(self, status: int, code: str, message: str, retryable: bool = False) -> None:
        """Say why, if nothing is being answered, and hang up."""
        self._refused = True
        self.connections.discard(self)  # there is room for another one
        self._watch(None)
        self._hold(0)
        if self.transport.is_closing():
            return
        if self._answering():
            self._room.cut += 1
            self._close()
        else:
            self._room.refused[code] += 1
            failure = Failure(code=code, message=message, status=status, retryable=retryable)
            self.transport.write(_last_answer(failure))
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self._cut)
        self._tell_gone()

    def _tell_gone(self) -> None:
        """Whoever works on an answer hears that the client has gone; uvicorn tells the newest only."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._cut_unread(_LINGER_S)

    def _cut(self) -> None:
        """Hang up at once. Without the option the system would keep what is unread, and try to send it for minutes."""
        if not self._lost:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self.transport.abort()

    def _cut_counted(self) -> None:
        """A limit was exceeded, and there is nobody to tell."""
        self._room.cut += not self._lost
        self._cut()

    def _cut_unread(self, timeout_s: float) -> None:
        """A connection that is closed stays for as long as its client does not read what is left."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(timeout_s, self._cut)


def _last_answer(failure: Failure) -> bytes:
    body = error_json(failure)
    lines = [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close"]
    if failure.retryable:
        lines.append(b"retry-after: 1")
    return STATUS_LINE[failure.status] + b"\r\n".join(lines) + b"\r\n\r\n" + body
