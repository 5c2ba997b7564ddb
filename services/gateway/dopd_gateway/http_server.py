"""An HTTP server inside a service's own loop.

Consumes: an ASGI app, host and port, the limits of connections. Produces: `HttpServer`; it takes connections when
`start` returns, and `stop` lets requests finish.
"""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from dopd.config import HttpConfig
from dopd.errors import ConfigError
from dopd.obs.log import get_logger
from dopd_gateway.http_connection import AT_THE_DOOR, Room

_OTHER_FILES = AT_THE_DOOR + 64
"""File descriptors that the process needs besides its clients' connections."""

_SEND_BUFFER_BYTES = 128 * 1024
"""Of each connection in the system. Left to itself, it grows to megabytes for a client that does not read."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process entry, which ends more than HTTP."""
        yield


class HttpServer:
    """One listening socket. With port 0 the system picks one: see `port` after `start`."""

    def __init__(
        self, app: Any, host: str, port: int, limits: HttpConfig | None = None, stop_timeout_s: float = 5.0
    ) -> None:
        self._host, self.port = host, port
        limits = limits or HttpConfig()
        room = self.room = Room(limits, connections_for(limits.max_connections))
        self._server = _Server(
            uvicorn.Config(
                app,
                # uvicorn only calls it.
                http=room.protocol(),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                # Its warnings are of what clients do, for each request; metrics count that.
                log_level="error",
                server_header=False,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=max(1, round(stop_timeout_s)),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises ConfigError when the port is taken."""
        # uvicorn would end the process by SystemExit when it cannot bind.
        listener = _listen(self._host, self.port)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended while it started")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Take no more, let requests finish, then cancel what is left."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


def connections_for(wanted: int) -> int:
    """How many of these connections are possible. The process' limit of open files is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        most = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < need:
            possible = max(1, most - _OTHER_FILES)
            get_logger().warning("fewer_connections_possible", wanted=wanted, possible=possible, open_files=most)
            return possible
    return wanted


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError("config", "gateway.port", f"cannot listen on {host}:{port} ({error.strerror})") from error
    # Those that it accepts have these from here. (asyncio's own loop forgets the first; uvloop does not.)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return listener
