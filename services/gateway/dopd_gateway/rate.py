"""Requests per second and key, as token buckets. Pure: time comes in.

Consumes: a key for each request. Produces: nothing, or TooManyRequests with the time to wait.
"""

from collections import OrderedDict

from dopd.errors import TooManyRequests

MOST_KEYS = 10_000
"""Buckets that are kept. Keys come from clients, so whoever invents them must not fill the memory."""


class Rates:
    """`per_s` 0 is no limit. A key that was idle may send `burst` requests at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now_s: float) -> None:
        """Count a request of this key. Raises TooManyRequests."""
        if not self._per_s:
            return
        left, at_s = self._buckets.pop(key, (float(self._burst), now_s))
        left = min(float(self._burst), left + (now_s - at_s) * self._per_s)
        allowed = left >= 1
        self._buckets[key] = (left - 1 if allowed else left, now_s)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        if not allowed:
            text = f"more than {self._per_s:g} requests per second of one key"
            raise TooManyRequests(text, retry_after_s=(1 - left) / self._per_s)
