"""Whether this planner leads, under which term, and whether it has listened long enough to judge silence.

Consumes the ledger's lease, the bus's connection and the loop's time; produces epochs, each higher than all before.
"""

import asyncio

from dopd.bus import Bus
from dopd.errors import LedgerLost
from dopd.ledger import Lease, Ledger


class Lead:
    """The lease of the name `planner`. `lease` is None while another holds it, or the ledger does not answer."""

    def __init__(self, ledger: Ledger, bus: Bus, planner_id: str, lease_s: float) -> None:
        self._ledger, self._bus, self._planner_id, self._lease_s = ledger, bus, planner_id, lease_s
        self._term = self._sequence = 0
        self._since_s = self._round_s = float("-inf")
        self.lease: Lease | None = None

    async def asked(self) -> Lease | None:
        """The lease, taken or renewed; None while another leads. Raises LedgerLost."""
        return await self._ledger.acquire("planner", self._planner_id, self._lease_s)

    def begins(self, lease: Lease | None) -> bool:
        """Whether with this lease a lead begins."""
        return lease is not None and (self.lease is None or lease.term != self.lease.term)

    def take(self, lease: Lease | None) -> None:
        """Lead under it, or no longer. In the same term epochs go on."""
        if lease is not None and lease.term != self._term:
            self._term, self._sequence = lease.term, 0
        self.lease = lease

    @property
    def term(self) -> int:
        """Raises LedgerLost for one who does not lead."""
        if self.lease is None:
            raise LedgerLost("the lease has lapsed")
        return self.lease.term

    def next_epoch(self) -> int:
        """(term, sequence) as one number. Raises LedgerLost for one who does not lead."""
        self._sequence += 1
        return self.term << 32 | self._sequence

    async def release(self) -> None:
        """Another may lead at once."""
        if self.lease is not None:
            await self._ledger.release(self.lease)

    # --- listening ----------------------------------------------------------------------------------------------

    def note_round(self) -> None:
        """Long without a round: we were frozen, or have just been started."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._round_s > self._lease_s:
            self._since_s = now_s
        self._round_s = now_s

    @property
    def listened(self) -> bool:
        """Whether silence means something: after a start, a reconnect or a freeze all get a lease to be heard."""
        now_s = asyncio.get_running_loop().time()
        return self._bus.connected and now_s - max(self._since_s, self._bus.connected_since_s) > self._lease_s
