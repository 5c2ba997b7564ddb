"""The ledger seam: a durable log of decisions, keys with compare-and-set, and leases.

Two implementations with one contract suite: `memory` and `jetstream`. The ledger is never on the request path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a log. `index` counts from 1 and has no holes."""

    index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held. `term` grows by one with each new holder; it is the high part of an epoch."""

    name: str
    holder: str
    term: int
    expires_s: float


class Ledger(Protocol):
    """All calls raise LedgerLost when the store does not answer within the time-out the ledger was opened with."""

    async def append(self, log: str, payload: bytes) -> int:
        """Add a record; its index."""

    async def read(self, log: str, start: int = 1, limit: int = 1000) -> Sequence[Entry]:
        """Records from index `start` on, or from the oldest there is: a store that is full gives up the oldest."""

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """Value and revision, or None."""

    async def put(self, key: str, value: bytes, revision: int) -> int:
        """Compare-and-set: `revision` is the one read, 0 for a new key. The new revision; raises Conflict."""

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Take or renew the lease. None while another holder's is valid. A renewal keeps its term."""

    async def release(self, lease: Lease) -> None:
        """Give it back early. Nothing happens when it is no longer held."""

    async def close(self) -> None:
        """Give the connection back."""
