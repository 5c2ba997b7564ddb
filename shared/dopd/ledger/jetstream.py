"""The ledger on NATS JetStream, over a connection of its own.

Consumes: a broker with JetStream, and a clock that all processes share. Produces: the `Ledger`.
Each log is a stream, whose sequence numbers are the indexes: the server gives them out without holes, whoever writes.
Keys and leases are one key-value bucket. A lease keeps its record when it ends, so that terms only grow. With three
brokers or more all is kept three times, so that one of them may die.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.kv import KeyValue

from dopd.bus.common import shown, within
from dopd.bus.nats_bus import StrictClient, close_client
from dopd.bus.reach import reach
from dopd.errors import Conflict, LedgerLost
from dopd.ledger import Entry, Lease
from dopd.ledger.common import check_name, is_same, next_lease, released

_BUCKET = "dopd_ledger"
_KEYS = f"KV_{_BUCKET}"
_READ_AT_ONCE = 64
_COPIES, _TRIES = 3, 20
# What a log may grow to, in bytes, which the broker sets aside; then the oldest records go. A busy planner writes 5 MB
# an hour.
_LOG_BYTES = 128 << 20

_log = logging.getLogger("dopd.ledger")

T = TypeVar("T")


# What the server says to the second of two that create the same stream at the same moment.
_BEATEN = (10058, 10065)


async def _unless_beaten(create: Callable[[], Awaitable[T]], stream: str) -> T | None:
    """Create a stream; once more when somebody else was just doing so. None: it is there, with other settings."""
    for _ in range(_TRIES):
        try:
            return await create()
        except js_errors.BadRequestError as error:
            if error.err_code not in _BEATEN:
                raise
            await asyncio.sleep(0.02)
    _log.warning("stream %s has other settings than it would be given now; it is used as it is", stream)
    return None


class Clock(Protocol):
    """What judges when a lease is over; a `Runtime` is one."""

    def now(self) -> float: ...


class JetStreamLedger:
    """The `Ledger` of one process. Open with `JetStreamLedger.open`."""

    def __init__(
        self, client: Client, clock: Clock, timeout_s: float, replicas: int = 1, log_bytes: int = _LOG_BYTES
    ) -> None:
        self._client, self._clock, self._timeout_s = client, clock, timeout_s
        self._replicas, self._log_bytes = replicas, log_bytes
        self._js: JetStreamContext = client.jetstream(timeout=timeout_s)
        self._keys: KeyValue | None = None
        self._logs: set[str] = set()
        # One set-up at a time, or every call of a burst would ask for the same stream.
        self._setting_up = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        url: str,
        clock: Clock,
        name: str = "ledger",
        timeout_s: float = 2.0,
        ca_file: str = "",
        log_bytes: int = _LOG_BYTES,
    ) -> "JetStreamLedger":
        """Connect; `url` and `ca_file` as in `reach`. A log that reaches `log_bytes` gives up its oldest records.
        Raises ConfigError, or LedgerLost when no broker answers within `timeout_s`."""
        client, to = StrictClient(), reach(url, ca_file)
        try:
            connecting = client.connect(
                **to.options(),
                name=name,
                error_cb=_ignore,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]  # the library sleeps for floats, too
                ping_interval=1,
                # Nothing is kept while the broker is away: a call that was reported lost must not happen later.
                pending_size=0,
            )
            await within(connecting, timeout_s)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await close_client(client)
            raise LedgerLost(f"{shown(url)}: {type(error).__name__}: {error}") from error
        return cls(client, clock, timeout_s, _COPIES if len(to.urls) >= _COPIES else 1, log_bytes)

    async def append(self, log: str, payload: bytes) -> int:
        """As in Ledger. After LedgerLost the record may have been written or not."""
        check_name(log)
        async with self._bounded("append"):
            for left in reversed(range(_TRIES)):
                await self._set_up_log(log)
                try:
                    return (await self._js.publish(_subject(log), payload, stream=_stream(log))).seq
                except js_errors.NoStreamResponseError:  # nobody has it, so nothing was written
                    if not left:
                        raise
                    self._logs.discard(log)  # another has just created it and it does not listen yet, or it was lost
                    await asyncio.sleep(0.02)
            raise AssertionError("the last try returns or raises")

    async def read(self, log: str, start: int = 1, limit: int = 1000) -> Sequence[Entry]:
        check_name(log)
        async with self._bounded("read"):
            while True:
                wanted = await self._indexes(log, start, limit)
                entries = await self._entries(log, wanted)
                if entries or not wanted:  # or all of them were given up since the store told what it has
                    return entries

    async def get(self, key: str) -> tuple[bytes, int] | None:
        check_name(key)
        async with self._bounded("get"):
            return await self._get(f"key.{key}")

    async def put(self, key: str, value: bytes, revision: int) -> int:
        check_name(key)
        async with self._bounded("put"):
            return await self._put(f"key.{key}", value, revision)

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        check_name(name)
        async with self._bounded("acquire"):
            held, revision = await self._lease(name)
            lease = next_lease(held, name, holder, self._clock.now(), ttl_s)
            if lease is None:
                return None
            try:
                await self._put(f"lease.{name}", msgspec.msgpack.encode(lease), revision)
            except Conflict:
                return None  # somebody was faster
            return lease

    async def release(self, lease: Lease) -> None:
        async with self._bounded("release"):
            held, revision = await self._lease(lease.name)
            if held is not None and is_same(held, lease):
                with contextlib.suppress(Conflict):
                    await self._put(f"lease.{lease.name}", msgspec.msgpack.encode(released(held)), revision)

    async def close(self) -> None:
        await close_client(self._client)

    async def _indexes(self, log: str, start: int, limit: int) -> range:
        """Which of the wanted records there are."""
        try:
            state = (await self._js.stream_info(_stream(log))).state
        except js_errors.NotFoundError:
            return range(0)
        first = max(start, state.first_seq, 1)
        return range(first, min(state.last_seq, first + limit - 1) + 1)

    async def _entries(self, log: str, wanted: range) -> list[Entry]:
        entries: list[Entry] = []
        for at in range(0, len(wanted), _READ_AT_ONCE):
            found = await asyncio.gather(*(self._entry(log, index) for index in wanted[at : at + _READ_AT_ONCE]))
            entries += [entry for entry in found if entry is not None]
        return entries

    async def _entry(self, log: str, index: int) -> Entry | None:
        try:
            found = await self._js.get_msg(_stream(log), seq=index, direct=True)
        except js_errors.NotFoundError:
            if index >= (await self._js.stream_info(_stream(log))).state.first_seq:
                raise
            return None  # given up since the read began
        return Entry(index, found.data or b"")

    async def _lease(self, name: str) -> tuple[Lease | None, int]:
        found = await self._get(f"lease.{name}")
        return (None, 0) if found is None else (msgspec.msgpack.decode(found[0], type=Lease), found[1])

    async def _get(self, key: str) -> tuple[bytes, int] | None:
        try:
            entry = await (await self._bucket()).get(key)
        except js_errors.KeyNotFoundError:
            return None
        return entry.value or b"", entry.revision or 0

    async def _put(self, key: str, value: bytes, revision: int) -> int:
        try:
            return await (await self._bucket()).update(key, value, last=revision)
        except js_errors.KeyWrongLastSequenceError as error:
            raise Conflict(f"{key}: revision is not {revision}") from error

    async def _bucket(self) -> KeyValue:
        async with self._setting_up:
            if self._keys is None:
                made = await _unless_beaten(
                    lambda: self._js.create_key_value(bucket=_BUCKET, history=1, replicas=self._replicas), _KEYS
                )
                self._keys = made or KeyValue(
                    name=_BUCKET, stream=_KEYS, pre=f"$KV.{_BUCKET}.", js=self._js, direct=False
                )
            return self._keys

    async def _set_up_log(self, log: str) -> None:
        """Creating what is there already, with the same settings, does nothing."""
        async with self._setting_up:
            if log not in self._logs:
                await _unless_beaten(
                    lambda: self._js.add_stream(
                        name=_stream(log),
                        subjects=[_subject(log)],
                        allow_direct=True,
                        num_replicas=self._replicas,
                        max_bytes=self._log_bytes,
                    ),
                    _stream(log),
                )
                self._logs.add(log)

    @contextlib.asynccontextmanager
    async def _bounded(self, what: str) -> AsyncIterator[None]:
        """One time-out around all of a call, and one error for all ways in which a store can be gone."""
        try:
            async with asyncio.timeout(self._timeout_s):
                # Also while it reconnects: the client's own check would come only after a buffered write.
                while not self._client.is_connected:
                    if self._client.is_closed:
                        raise LedgerLost(f"{what}: the ledger is closed")
                    await asyncio.sleep(0.02)
                yield
        except (TimeoutError, OSError, nats.errors.Error) as error:
            self._logs.clear()  # the store may come back empty
            self._keys = None
            raise LedgerLost(f"{what}: {type(error).__name__}: {error}") from error


def asked_of_the_broker(logs: Sequence[str]) -> list[str]:
    """The subjects that a ledger with these logs publishes to. It makes and writes, and never deletes or changes."""
    names = [_stream(log) for log in logs]
    return [
        *(_subject(log) for log in logs),
        f"$KV.{_BUCKET}.>",
        f"$JS.API.STREAM.CREATE.KV_{_BUCKET}",
        f"$JS.API.STREAM.MSG.GET.KV_{_BUCKET}",
        *(f"$JS.API.{verb}.{name}" for name in names for verb in ("STREAM.CREATE", "STREAM.INFO", "DIRECT.GET")),
    ]


def _stream(log: str) -> str:
    # Stream names take no dots.
    return "dopd_log_" + log.replace("_", "__").replace(".", "_d")


def _subject(log: str) -> str:
    return f"dopd.ledger.{log}"


async def _ignore(error: Exception) -> None:
    """Lost connections show as LedgerLost in the calls; the library's default prints a trace for each try."""
