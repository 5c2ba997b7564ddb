"""What both ledgers do alike: the rules of a lease, and which names they take.

Pure: consumes the lease on record and the time, produces the next one.
"""

import re

from dopd.ledger import Lease

_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def check_name(name: str) -> None:
    """Names of logs, keys and leases: letters, digits, `_`, `-`, and dots between. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: letters, digits, _ and -, with dots between, are possible")


def next_lease(held: Lease | None, name: str, holder: str, now_s: float, ttl_s: float) -> Lease | None:
    """The lease after a try of `holder` at `now_s`; None while another's is valid.

    A holder renews with the same term as long as nobody took over, also after it lapsed: nobody can have acted on it.
    """
    if held is None:
        return Lease(name, holder, 1, now_s + ttl_s)
    if held.holder == holder:
        return Lease(name, holder, held.term, now_s + ttl_s)
    if held.expires_s > now_s:
        return None
    return Lease(name, holder, held.term + 1, now_s + ttl_s)


def is_same(held: Lease, lease: Lease) -> bool:
    """Whether the lease is still the one of this holder and term; its expiry may have moved."""
    return (held.holder, held.term) == (lease.holder, lease.term)


def released(held: Lease) -> Lease:
    """Nobody's: over at once, its term kept."""
    return Lease(held.name, "", held.term, float("-inf"))
