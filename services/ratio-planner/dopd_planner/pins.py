"""The roles that people have pinned, as the ledger keeps them.

Consumes pins and their withdrawal; produces the pinned role per worker, the same for every leader.
"""

import asyncio

import msgspec

from dopd.errors import Conflict
from dopd.ledger import Ledger
from dopd_proto.base import Role

KEY = "pins"


class Pins:
    """All calls raise LedgerLost, and `pin` Conflict where another planner writes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._revision = 0
        self._one_at_a_time = asyncio.Lock()
        self.roles: dict[str, Role] = {}

    async def load(self) -> None:
        """What the ledger says."""
        found = await self._ledger.get(KEY)
        self.roles, self._revision = {}, 0
        if found is not None:
            self.roles, self._revision = msgspec.msgpack.decode(found[0], type=dict[str, Role]), found[1]

    async def pin(self, worker_id: str, role: Role | None) -> None:
        """Pin, or unpin with None; one after the other: each write needs the revision of the one before."""
        async with self._one_at_a_time:
            try:
                await self._store(worker_id, role)
            except Conflict:
                # A write of ours whose answer was lost. Had somebody else written, the next round would end our lead.
                await self.load()
                await self._store(worker_id, role)

    async def _store(self, worker_id: str, role: Role | None) -> None:
        roles = {w: pinned for w, pinned in self.roles.items() if w != worker_id}
        if role is not None:
            roles[worker_id] = role
        self._revision = await self._ledger.put(KEY, msgspec.msgpack.encode(roles), self._revision)
        self.roles = roles
