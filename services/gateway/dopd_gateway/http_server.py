"""An HTTP server inside a service's own loop.

Consumes: an ASGI app, host and port. Produces: `HttpServer`; it takes connections when `start` returns, and `stop` lets
requests finish.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from dopd.errors import ConfigError


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process entry, which ends more than HTTP."""
        yield


class HttpServer:
    """One listening socket. With port 0 the system picks one: see `port` after `start`."""

    def __init__(self, app: Any, host: str, port: int, stop_timeout_s: float = 5.0) -> None:
        self._host, self.port = host, port
        self._server = _Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                # Longer than clients keep idle connections, so that none is closed under a request on its way.
                timeout_keep_alive=75,
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError("config", "gateway.port", f"cannot listen on {host}:{port} ({error.strerror})") from error
