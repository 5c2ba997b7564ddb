"""Requests per second and key, as token buckets. Pure: time comes in.

Consumes: a key for each request, or the name of its owner. Produces: nothing, or TooManyRequests with the time to wait.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from dopd.errors import TooManyRequests

MOST_KEYS = 10_000
"""Buckets that are kept. Keys come from clients, so whoever invents them must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`per_s` 0 is no limit. A key that was idle may send `burst` requests at once."""

    per_s: float
    burst: int


class Rates:
    """A limit for all keys, but for those that have one of their own."""

    def __init__(self, per_s: float, burst: int, own: Callable[[str], Limit | None] = lambda key: None) -> None:
        self._limit, self._own = Limit(per_s, burst), own
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now_s: float) -> None:
        """Count a request of this key. Raises TooManyRequests."""
        limit = self._own(key) or self._limit
        if not limit.per_s:
            return
        left, at_s = self._buckets.pop(key, (float(limit.burst), now_s))
        left = min(float(limit.burst), left + (now_s - at_s) * limit.per_s)
        allowed = left >= 1
        self._buckets[key] = (left - 1 if allowed else left, now_s)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        if not allowed:
            text = f"more than {limit.per_s:g} requests per second of one key"
            raise TooManyRequests(text, retry_after_s=(1 - left) / limit.per_s)
