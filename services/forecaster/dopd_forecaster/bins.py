"""Windows of all gateways, whenever and however often they come, as counts per bin. Pure; the caller brings the clock.

Consumes `ArrivalWindow`s and `OutcomeWindow`s; produces, for each bin once it can be closed, the counts summed over
gateways and the share of the bin that was seen. Late windows change bins that are closed.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow

KEEP_BINS = 600
GAP_BINS = 30
"""After so many unknown bins in a row what was known before says nothing any more."""
LIVE_WINDOWS = 3
"""A gateway silent for longer than this many of its windows is gone."""
EPSILON_S = 1e-6
SLACK_SHARE = 0.05
"""Of a bin: timers fire a little early or late, and windows end with them."""

ARRIVED = ("requests", "isl", "isl_square", "osl_limit", "short")
ENDED = ("completed", "made", "made_context")
Counts = dict[str, float]


def no_counts() -> Counts:
    """Nothing of anything."""
    return dict.fromkeys((*ARRIVED, *ENDED), 0.0)


@dataclass(slots=True)
class Part:
    """What one gateway counted in one bin, and which share of the bin it covered. `carried`: not heard but assumed."""

    share: float = 0.0
    counts: Counts = field(default_factory=no_counts)
    carried: bool = False


@dataclass(slots=True)
class Source:
    """One gateway: its present life, when that began, how far its windows reach, when it was last heard."""

    incarnation: str
    since_s: float
    until_s: float
    heard_s: float
    span_s: float


class Bins:
    """`next_bin` is the first that is open, None before the first window."""

    def __init__(self, bin_s: float, short_tokens: int) -> None:
        self.bin_s, self.short_tokens = bin_s, short_tokens
        self.next_bin: int | None = None
        self._closed = 0
        self._parts: dict[int, dict[str, Part]] = {}
        self._sources: dict[str, Source] = {}
        self._taken: dict[tuple[str, str, str], deque[tuple[float, float]]] = {}
        self._amended: set[int] = set()

    # --- what is heard ------------------------------------------------------------------------------------------

    def add_arrivals(self, window: ArrivalWindow, now_s: float) -> str:
        """Take a window in. Returns why not (see `_refusal`), "" when it was taken."""
        counted = (window.requests, window.isl_tokens_sum, window.isl_tokens_square_sum, window.osl_tokens_limit_sum)
        if reason := self._refusal(window, "arrivals", counted, now_s):
            return reason
        source = self._sources.get(window.gateway_id)
        if source is None or window.end_s > source.until_s:
            same = source is not None and source.incarnation == window.incarnation
            since_s = source.since_s if source is not None and same else window.start_s
            span_s = window.end_s - window.start_s
            self._sources[window.gateway_id] = Source(window.incarnation, since_s, window.end_s, now_s, span_s)
        short = below(window.isl_tokens_histogram, self.short_tokens)
        self._spread(window, dict(zip(ARRIVED, (*counted, short), strict=True)), covers=True)
        return ""

    def add_outcomes(self, window: OutcomeWindow, now_s: float) -> str:
        """As `add_arrivals`; they say nothing about which gateways there are."""
        counted = (window.completed, window.made_tokens, window.made_context_tokens)
        if reason := self._refusal(window, "outcomes", counted, now_s):
            return reason
        self._spread(window, dict(zip(ENDED, counted, strict=True)), covers=False)
        return ""

    def _refusal(self, window: ArrivalWindow | OutcomeWindow, kind: str, counted: Sequence[float], now_s: float) -> str:
        """not_finite, negative, empty; future (a clock was set wrong), old (its bins are forgotten), or duplicate
        (this life of the gateway told of that time before)."""
        start_s, end_s = window.start_s, window.end_s
        if not (math.isfinite(start_s) and math.isfinite(end_s)):
            return "not_finite"
        if min(counted) < 0:
            return "negative"
        if end_s <= start_s:
            return "empty"
        if end_s > now_s + self.bin_s:
            return "future"
        if start_s < now_s - KEEP_BINS * self.bin_s:
            return "old"
        key = (kind, window.gateway_id, window.incarnation)
        if any(start_s < end - EPSILON_S and end_s > start + EPSILON_S for start, end in self._taken.get(key, ())):
            return "duplicate"
        self._taken.setdefault(key, deque(maxlen=KEEP_BINS)).append((start_s, end_s))
        return ""

    def _spread(self, window: ArrivalWindow | OutcomeWindow, counts: Counts, covers: bool) -> None:
        """Over the bins that the window touches, by overlap."""
        span_s = window.end_s - window.start_s
        first = math.floor((window.start_s + EPSILON_S) / self.bin_s)
        last = math.ceil((window.end_s - EPSILON_S) / self.bin_s)
        if self.next_bin is None or (first < self.next_bin and not self._closed):
            self.next_bin = first
        for number in range(max(first, self.next_bin - KEEP_BINS), last):
            overlap_s = min(window.end_s, (number + 1) * self.bin_s) - max(window.start_s, number * self.bin_s)
            parts = self._parts.setdefault(number, {})
            part = parts.get(window.gateway_id)
            if part is None or (part.carried and covers):
                part = parts[window.gateway_id] = Part()
            part.share += overlap_s / self.bin_s if covers else 0.0
            for name, value in counts.items():
                part.counts[name] += value * overlap_s / span_s
            if number < self.next_bin:
                self._amended.add(number)

    # --- what is closed -----------------------------------------------------------------------------------------

    def close(self, now_s: float) -> int | None:
        """Close the next bin if every gateway has told of it, or if it is overdue; returns its number, else None."""
        self._sources = {
            gateway_id: source
            for gateway_id, source in self._sources.items()
            if now_s - source.heard_s <= LIVE_WINDOWS * max(source.span_s, self.bin_s)
        }
        number = self.next_bin
        if number is None:
            return None
        reached_s = [source.until_s + SLACK_SHARE * self.bin_s for source in self._sources.values()]
        end_s = (number + 1) * self.bin_s
        if max(reached_s, default=-math.inf) < end_s:
            return None
        if min(reached_s) < end_s and now_s < end_s + self.bin_s / 2:
            return None
        self._carry(number)
        self._closed += 1
        self.next_bin = number + 1
        self._forget(number - KEEP_BINS)
        return number

    def skip_gap(self) -> bool:
        """Go on with the next bin that is known if so many are not that the past says nothing any more."""
        if self.next_bin is None or self._parts.get(self.next_bin):
            return False
        known = min((number for number in self._parts if number > self.next_bin), default=self.next_bin)
        if known - self.next_bin < GAP_BINS:
            return False
        self.next_bin = known
        return True

    def amended(self) -> set[int]:
        """Closed bins that late windows have changed since this was last asked."""
        found, self._amended = self._amended, set()
        return found

    def sums(self, number: int) -> tuple[Counts, float]:
        """A bin's counts over all gateways, and the largest share of it that one of them covered."""
        parts = self._parts.get(number, {}).values()
        total = no_counts()
        for part in parts:
            for name, value in part.counts.items():
                total[name] += value
        return total, max((part.share for part in parts), default=0.0)

    def _carry(self, number: int) -> None:
        """For a gateway that is there and has not told of this bin, assume its bin before: a lost or late window is
        no drop of the load. A gateway that came during the bin, or is gone, counts as it told."""
        parts = self._parts.setdefault(number, {})
        for gateway_id, source in self._sources.items():
            before = self._parts.get(number - 1, {}).get(gateway_id)
            heard = gateway_id in parts and parts[gateway_id].share >= 0.5
            if not heard and before is not None and source.since_s < number * self.bin_s:
                parts[gateway_id] = Part(before.share, dict(before.counts), carried=True)

    def _forget(self, number: int) -> None:
        self._parts.pop(number, None)
        lives = {(gateway_id, source.incarnation) for gateway_id, source in self._sources.items()}
        recent_s = (number + KEEP_BINS - GAP_BINS) * self.bin_s
        self._taken = {key: spans for key, spans in self._taken.items() if key[1:] in lives or spans[-1][1] > recent_s}


def below(histogram: Sequence[int], tokens: int) -> float:
    """Requests shorter than `tokens` by a histogram of bit lengths: place b counts 2^(b-1) <= n < 2^b. Within a place
    lengths are taken as evenly spread, so a power of two is exact."""
    if tokens <= 0:
        return 0.0
    place = (tokens - 1).bit_length()
    low = 1 << (place - 1) if place else 0
    inside = (tokens - low) / low if low else 1.0
    part = histogram[place] * inside if place < len(histogram) else 0.0
    return sum(histogram[:place]) + part
