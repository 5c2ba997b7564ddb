"""The ledger in memory, for virtual time and tests.

Consumes: a clock (default: the loop's). Produces: the `Ledger` of one would-be process, over a `MemoryStore` that
several share.
Faults: `store.lost()` until `store.found()`, for all or for one ledger, and `store.delay_s`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dopd.errors import Conflict, LedgerLost
from dopd.ledger import Entry, Lease
from dopd.ledger.common import check_name, is_same, next_lease, released


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class MemoryStore:
    """What the server would hold. It stays when ledgers come and go."""

    delay_s: float = 0.0
    now: Callable[[], float] = _loop_time
    logs: dict[str, list[bytes]] = field(default_factory=dict)
    keys: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    is_lost: bool = False
    revision: int = 0

    def open(self, timeout_s: float = 1.0) -> "MemoryLedger":
        """A ledger for one would-be process."""
        return MemoryLedger(self, timeout_s)

    def lost(self) -> None:
        """From now on nothing answers."""
        self.is_lost = True

    def found(self) -> None:
        self.is_lost = False


class MemoryLedger:
    """The `Ledger` of one would-be process. `is_lost` cuts off this one alone."""

    def __init__(self, store: MemoryStore, timeout_s: float) -> None:
        self._store, self._timeout_s = store, timeout_s
        self.is_lost = False

    async def append(self, log: str, payload: bytes) -> int:
        check_name(log)
        await self._reach("append")
        entries = self._store.logs.setdefault(log, [])
        entries.append(payload)
        return len(entries)

    async def read(self, log: str, start: int = 1, limit: int = 1000) -> Sequence[Entry]:
        await self._reach("read")
        first = max(start, 1)
        found = self._store.logs.get(log, [])[first - 1 : first - 1 + limit]
        return [Entry(first + offset, payload) for offset, payload in enumerate(found)]

    async def get(self, key: str) -> tuple[bytes, int] | None:
        await self._reach("get")
        return self._store.keys.get(key)

    async def put(self, key: str, value: bytes, revision: int) -> int:
        check_name(key)
        await self._reach("put")
        held = self._store.keys.get(key, (b"", 0))[1]
        if held != revision:
            raise Conflict(f"{key}: revision is {held}, not {revision}")
        self._store.revision += 1
        self._store.keys[key] = (value, self._store.revision)
        return self._store.revision

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        check_name(name)
        await self._reach("acquire")
        lease = next_lease(self._store.leases.get(name), name, holder, self._store.now(), ttl_s)
        if lease is not None:
            self._store.leases[name] = lease
        return lease

    async def release(self, lease: Lease) -> None:
        await self._reach("release")
        held = self._store.leases.get(lease.name)
        if held is not None and is_same(held, lease):
            # The term stays on record: the next holder's must be higher.
            self._store.leases[lease.name] = released(held)

    async def close(self) -> None:
        self.is_lost = True

    async def _reach(self, what: str) -> None:
        """The way to the store and back. Raises LedgerLost after the time-out where there is none."""
        lost = self._store.is_lost or self.is_lost or self._store.delay_s >= self._timeout_s
        wait_s = self._timeout_s if lost else self._store.delay_s
        if wait_s:
            await asyncio.sleep(wait_s)
        # Again, since it may have gone while we were on the way.
        if lost or self._store.is_lost or self.is_lost:
            raise LedgerLost(f"{what}: no answer within {self._timeout_s} s")
