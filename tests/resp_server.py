"""A store for tests that speaks as much of RESP as the product uses: in a thread, or as `python -m tests.resp_server`.

It stands for Valkey or Redis, which a bare machine does not have; what LMCache stores in it is kept in memory.
"""

import contextlib
import socketserver
import sys
import threading
import time
from types import TracebackType


class RespServer:
    """`with RespServer() as server:` answers until the end; `silent` takes what comes and says nothing."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port, self.silent = host, port, False
        self.values: dict[bytes, bytes] = {}
        self._server: socketserver.ThreadingTCPServer | None = None
        self._connections: list[_Connection] = []

    def start(self) -> None:
        """Again on the same port, with nothing in it."""
        _Server.allow_reuse_address = True
        self._server = _Server((self.host, self.port), _Connection)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self.values.clear()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Connections are closed, too."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in self._connections:
            connection.cut()
        self._connections.clear()

    def answer(self, words: list[bytes]) -> bytes:
        """One command."""
        name, keys = words[0].upper(), words[1:]
        if name == b"PING":
            return b"+PONG\r\n"
        if name == b"SET":
            self.values[keys[0]] = keys[1]
            return b"+OK\r\n"
        if name == b"GET":
            value = self.values.get(keys[0])
            return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
        if name == b"EXISTS":
            return b":%d\r\n" % sum(key in self.values for key in keys)
        if name == b"DEL":
            return b":%d\r\n" % sum(self.values.pop(key, None) is not None for key in keys)
        return b"-ERR unknown command\r\n"

    def __enter__(self) -> "RespServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    owner: RespServer


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner._connections.append(self)

    def cut(self) -> None:
        """As when the process dies."""
        with contextlib.suppress(OSError):  # the other side may be faster
            self.connection.shutdown(2)

    def handle(self) -> None:
        try:
            while line := self.rfile.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size + 2)[:-2])
                if not self.server.owner.silent:
                    self.wfile.write(self.server.owner.answer(words))
        except OSError:
            return  # the client has gone


def main() -> None:
    """`python -m tests.resp_server HOST PORT` until it is killed."""
    with RespServer(sys.argv[1], int(sys.argv[2])):
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
