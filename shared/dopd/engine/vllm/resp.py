"""A store that speaks RESP (Valkey, Redis) behind the LMCache servers of several hosts; runs inside those servers.

Consumes what LMCache asks of a native connector: batches of keys and buffers; produces completions and a readable file
descriptor. LMCache's own RESP client waits for ever on a dead link and never connects again. This one gives an
operation `TIMEOUT_S` without a byte, fails all others at once until `RETRY_S` are over, and then connects anew.
Whatever fails is a miss. `answers` is the same question for a worker.
"""

import asyncio
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from dopd.errors import ConfigError

TIMEOUT_S, RETRY_S = 1.0, 1.0
CONNECTIONS = 4

Completion = tuple[int, bool, str, list[bool] | None]
Task = Callable[["Connection"], list[bool]]


def place(url: str) -> tuple[str, int]:
    """Host and port of `redis://HOST:PORT`. Raises ConfigError for anything else."""
    try:
        to = urlsplit(url)
        if to.scheme != "redis" or not to.hostname or not to.port or to.username or to.password or to.path.strip("/"):
            raise ValueError("redis://HOST:PORT is expected")
    except ValueError as error:
        raise ConfigError("config", "engine.kv_shared", f"{url!r} is no address ({error})") from None
    return to.hostname, to.port


async def answers(host: str, port: int, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether such a store answers from here."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(_command(b"PING"))
            return (await reader.readline()).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()


@dataclass(slots=True)
class Outage:
    """Common to the connections to one store: whoever fails spares the others the wait."""

    until_s: float = 0.0


class Connection:
    """One connection, made when it is needed. All methods raise OSError, after which it is closed."""

    def __init__(self, host: str, port: int, outage: Outage) -> None:
        self._to, self._outage = (host, port), outage
        self._socket: socket.socket | None = None

    def run(self, task: Task) -> list[bool]:
        """The task on an open connection."""
        if time.monotonic() < self._outage.until_s:
            raise OSError("out of reach")
        try:
            if self._socket is None:
                self._open()
            return task(self)
        except (OSError, ValueError) as error:
            self._outage.until_s = time.monotonic() + RETRY_S
            self.close()
            raise OSError(str(error)) from error

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Which keys are there."""
        self._send(*(_command(b"EXISTS", key.encode()) for key in keys))
        return [self._line() == b":1" for _ in keys]

    def set(self, keys: Sequence[str], values: Sequence[memoryview]) -> list[bool]:
        """Store the values."""
        for key, value in zip(keys, values, strict=True):
            head = _command(b"SET", key.encode(), arguments=3) + b"$%d\r\n" % value.nbytes
            self._send(head, value, b"\r\n")
        return [self._line() == b"+OK" for _ in keys]  # anything else is an error, which `_line` raises

    def get(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> list[bool]:
        """Fill the buffers; False for what is not there. A value of another length than its buffer is an error."""
        self._send(*(_command(b"GET", key.encode()) for key in keys))
        return [self._value(buffer) for buffer in buffers]

    def delete(self, keys: Sequence[str]) -> list[bool]:
        """Remove what is there."""
        self._send(*(_command(b"DEL", key.encode()) for key in keys))
        return [self._line() == b":1" for _ in keys]

    def close(self) -> None:
        """May be called twice."""
        if self._socket is not None:
            self._file.close()
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        self._socket = socket.create_connection(self._to, TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def _send(self, *parts: bytes | memoryview) -> None:
        assert self._socket is not None
        for part in parts if any(isinstance(part, memoryview) for part in parts) else (b"".join(parts),):
            self._socket.sendall(part)

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the connection was closed")
        if line.startswith(b"-"):
            raise OSError(line.decode(errors="replace").strip())
        return line[:-2]

    def _value(self, buffer: memoryview) -> bool:
        size = int(self._line()[1:])
        if size < 0:
            return False
        if size != buffer.nbytes:
            raise OSError(f"a value of {size} bytes, {buffer.nbytes} expected")
        at = 0
        while at < size:
            read = self._file.readinto(buffer[at:])
            if not read:
                raise OSError("the connection was closed")
            at += read
        self._file.read(2)
        return True


class RespClient:
    """What LMCache's `native_plugin` adapter wants: batches in, completions out, each with a number."""

    def __init__(self, host: str, port: int) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._tasks: queue.SimpleQueue[tuple[int, Task] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._lock, self._last = threading.Lock(), 0
        outage = Outage()
        connections = [Connection(host, port, outage) for _ in range(CONNECTIONS)]
        self._threads = [threading.Thread(target=self._work, args=(each,), daemon=True) for each in connections]
        for thread in self._threads:
            thread.start()

    def event_fd(self) -> int:
        """Readable when there are completions."""
        return self._event

    def submit_batch_exists(self, keys: list[str]) -> int:
        """Completes with one bool per key."""
        return self._submit(lambda connection: connection.exists(keys))

    def submit_batch_set(self, keys: list[str], values: list[memoryview]) -> int:
        """The buffers stay as they are until it has completed."""
        return self._submit(lambda connection: connection.set(keys, values))

    def submit_batch_get(self, keys: list[str], buffers: list[memoryview]) -> int:
        """The same; completes with one bool per key."""
        return self._submit(lambda connection: connection.get(keys, buffers))

    def submit_batch_delete(self, keys: list[str]) -> int:
        """Completes with one bool per key."""
        return self._submit(lambda connection: connection.delete(keys))

    def drain_completions(self) -> list[Completion]:
        """(number, whether all of it went well, error, bools) of what has completed since the last call."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        return [self._done.get() for _ in range(self._done.qsize())]

    def close(self) -> None:
        """End the threads, and what they are at."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=2 * TIMEOUT_S)
        os.close(self._event)

    def _submit(self, task: Task) -> int:
        with self._lock:
            self._last += 1
            number = self._last
        self._tasks.put((number, task))
        return number

    def _work(self, connection: Connection) -> None:
        while (given := self._tasks.get()) is not None:
            number, task = given
            try:
                found = connection.run(task)
                completion: Completion = (number, True, "", found)
            except OSError as error:
                completion = (number, False, str(error), None)
            self._done.put(completion)
            os.eventfd_write(self._event, 1)
        connection.close()


def _command(name: bytes, *words: bytes, arguments: int = 0) -> bytes:
    """A command; with `arguments` more of them follow than there are words."""
    parts = [name, *words]
    return b"*%d\r\n" % (arguments or len(parts)) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
