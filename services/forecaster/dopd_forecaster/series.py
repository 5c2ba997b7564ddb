"""From windows that gateways count to series that can be forecast. Pure; the caller brings the clock.

Consumes `ArrivalWindow`s and `OutcomeWindow`s in any order; produces, per closed bin of `bin_s`, one value and one
weight for each name of `SERIES`, summed over gateways. A bin without requests is a zero, a bin that no gateway told of
is unknown (NaN): the first is news, the second is none.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dopd.perf.profile import Profile
from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow

FLOWS = ("requests_per_s", "prefill_work", "decode_work")
MEANS = ("isl_tokens_mean", "isl_square_mean", "osl_tokens_mean", "short_share")
SERIES = FLOWS + MEANS
"""Work is seconds of engine time per second: the engines that would be busy. Means are over requests."""
KEEP_BINS = 600
GAP_BINS = 30
"""After so many unknown bins in a row what was known before says nothing any more."""
LIVE_WINDOWS = 3
"""A gateway silent for longer than this many of its windows is gone."""
LENGTH_HALF_LIFE_BINS = 12
EPSILON_S = 1e-6
SLACK_SHARE = 0.05
"""Of a bin: timers fire a little early or late, and windows end with them."""

COUNTS = ("requests", "isl", "isl_square", "osl_limit", "short", "completed", "made", "made_context")
Counts = dict[str, float]


@dataclass(slots=True)
class Part:
    """What one gateway counted in one bin, and which share of the bin it covered. `carried`: not heard but assumed."""

    share: float = 0.0
    counts: Counts = field(default_factory=lambda: dict.fromkeys(COUNTS, 0.0))
    carried: bool = False


@dataclass(slots=True)
class Source:
    """One gateway: its present life, when that began, how far its windows reach, when it was last heard."""

    incarnation: str
    since_s: float
    until_s: float
    heard_s: float
    span_s: float


@dataclass(slots=True)
class Decode:
    """Running sums for the decode work of a request, old ones fading."""

    made: float = 0.0
    context: float = 0.0
    completed: float = 0.0
    limit: float = 0.0
    requests: float = 0.0


class Series:
    """The series so far. `prefill` and `decode` turn lengths into work."""

    def __init__(self, bin_s: float, prefill: Profile, decode: Profile, short_tokens: int = 128) -> None:
        self.bin_s, self.short_tokens = bin_s, short_tokens
        self._prefill, self._decode_profile = prefill, decode
        self._parts: dict[int, dict[str, Part]] = {}
        self._sources: dict[str, Source] = {}
        self._taken: dict[tuple[str, str, str], deque[tuple[float, float]]] = {}
        self._decode = Decode()
        self._values: dict[str, deque[tuple[float, float]]] = {name: deque(maxlen=KEEP_BINS) for name in SERIES}
        self.next_bin: int | None = None
        self.osl_from_limit = False

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
        self._spread(window, dict(zip(COUNTS, (*counted, short), strict=False)), covers=True)
        return ""

    def add_outcomes(self, window: OutcomeWindow, now_s: float) -> str:
        """As `add_arrivals`; they say nothing about which gateways there are."""
        counted = (window.completed, window.made_tokens, window.made_context_tokens)
        if reason := self._refusal(window, "outcomes", counted, now_s):
            return reason
        self._spread(window, dict(zip(COUNTS[5:], counted, strict=True)), covers=False)
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
        """Over the bins that the window touches, by overlap. A late one changes bins that are closed."""
        span_s = window.end_s - window.start_s
        first = math.floor((window.start_s + EPSILON_S) / self.bin_s)
        last = math.ceil((window.end_s - EPSILON_S) / self.bin_s)
        if self.next_bin is None:
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
                self._amend(number)

    # --- what is closed -----------------------------------------------------------------------------------------

    def close(self, now_s: float) -> list[int]:
        """Close the bins that every gateway has told of, and those that are overdue; returns their numbers."""
        self._sources = {
            gateway_id: source
            for gateway_id, source in self._sources.items()
            if now_s - source.heard_s <= LIVE_WINDOWS * max(source.span_s, self.bin_s)
        }
        closed: list[int] = []
        reach_s = max((source.until_s for source in self._sources.values()), default=-math.inf)
        while self.next_bin is not None and reach_s >= (self.next_bin + 1 - SLACK_SHARE) * self.bin_s:
            end_s = (self.next_bin + 1) * self.bin_s
            told = all(source.until_s >= end_s - SLACK_SHARE * self.bin_s for source in self._sources.values())
            if not told and now_s < end_s + self.bin_s / 2:
                break
            if not self._parts.get(self.next_bin) and self._gap():
                continue
            self._carry(self.next_bin)
            self._append(self.next_bin)
            closed.append(self.next_bin)
            self.next_bin += 1
            self._forget()
        return closed

    def values(self, name: str) -> list[float]:
        """Per closed bin, oldest first; NaN where it is unknown, and for a mean without requests."""
        return [value for value, _ in self._values[name]]

    def actual(self, name: str, first: int, bins: int) -> tuple[float, float]:
        """Weighted mean over closed bins from number `first`, and its weight; NaN when one of a flow is unknown."""
        assert self.next_bin is not None, "only asked for closed bins"
        kept = self._values[name]
        at = len(kept) - (self.next_bin - first)
        if at < 0:
            return math.nan, 0.0
        some = [kept[place] for place in range(at, at + bins)]
        if name in FLOWS and any(math.isnan(value) for value, _ in some):
            return math.nan, 0.0
        weight = sum(weight for _, weight in some)
        return (sum(v * w for v, w in some if w) / weight, weight) if weight else (math.nan, 0.0)

    def _gap(self) -> bool:
        """Whether so much is unknown from the next bin on that everything starts anew at the next known one."""
        assert self.next_bin is not None
        known = min((number for number in self._parts if number > self.next_bin), default=self.next_bin)
        if known - self.next_bin < GAP_BINS:
            return False
        for kept in self._values.values():
            kept.clear()
        self._decode = Decode()
        self.next_bin = known
        return True

    def _carry(self, number: int) -> None:
        """For a gateway that is there and has not told of this bin, assume its bin before: a lost or late window is
        no drop of the load. A gateway that came during the bin, or is gone, counts as it told."""
        parts = self._parts.setdefault(number, {})
        for gateway_id, source in self._sources.items():
            before = self._parts.get(number - 1, {}).get(gateway_id)
            heard = gateway_id in parts and parts[gateway_id].share >= 0.5
            if not heard and before is not None and source.since_s < number * self.bin_s:
                parts[gateway_id] = Part(before.share, dict(before.counts), carried=True)

    def _append(self, number: int) -> None:
        for name, pair in self._row(number, fade=True).items():
            self._values[name].append(pair)

    def _amend(self, number: int) -> None:
        assert self.next_bin is not None
        at = len(self._values[SERIES[0]]) - (self.next_bin - number)
        if at >= 0:
            for name, pair in self._row(number, fade=False).items():
                self._values[name][at] = pair

    def _row(self, number: int, fade: bool) -> dict[str, tuple[float, float]]:
        """Value and weight of every series in this bin. `fade`: it is the newest, so what requests decode goes on."""
        parts = self._parts.get(number, {}).values()
        share = max((part.share for part in parts), default=0.0)
        sums = {name: sum(part.counts[name] for part in parts) for name in COUNTS}
        if fade:
            self._fade(sums)
        if share < 0.5:  # too little of it was seen by anyone
            return dict.fromkeys(SERIES, (math.nan, 0.0))
        span_s, requests, completed = min(1.0, share) * self.bin_s, sums["requests"], sums["completed"]
        prefill_s = (
            requests * self._prefill.prefill_fixed_s
            + sums["isl"] * self._prefill.prefill_token_s
            + sums["isl_square"] * self._prefill.prefill_token2_s
        )
        return {
            "requests_per_s": (requests / span_s, 1.0),
            "prefill_work": (prefill_s / span_s, 1.0),
            "decode_work": (requests * self.decode_s() / span_s, 1.0),
            "isl_tokens_mean": _mean(sums["isl"], requests),
            "isl_square_mean": _mean(sums["isl_square"], requests),
            "osl_tokens_mean": _mean(sums["made"], completed),
            "short_share": _mean(sums["short"], requests),
        }

    def _fade(self, sums: Counts) -> None:
        kept, d = 0.5 ** (1 / LENGTH_HALF_LIFE_BINS), self._decode
        d.made, d.context = kept * d.made + sums["made"], kept * d.context + sums["made_context"]
        d.completed = kept * d.completed + sums["completed"]
        d.limit, d.requests = kept * d.limit + sums["osl_limit"], kept * d.requests + sums["requests"]

    def decode_s(self) -> float:
        """Marginal decode seconds of a request: per token, and per token of its context at that token.

        Output lengths are known late, and of requests that run the short ones end first. Tokens made by all requests
        over requests completed is free of that bias in steady state, and with a constant chance to end per token it is
        the maximum-likelihood estimate under right-censoring. Until something has completed, `max_tokens` stands in.
        """
        d, profile = self._decode, self._decode_profile
        limit = d.limit / d.requests if d.requests else 0.0
        self.osl_from_limit = d.completed < 0.5
        tokens = limit if self.osl_from_limit else d.made / d.completed
        tokens = min(tokens, limit) if limit else tokens
        context = tokens * (d.context / d.made if d.made else 0.0)
        return profile.decode_request_s * tokens + profile.decode_context_s * context

    def osl_limit(self) -> float:
        """Mean `max_tokens` of late."""
        return self._decode.limit / self._decode.requests if self._decode.requests else 0.0

    def _forget(self) -> None:
        assert self.next_bin is not None
        self._parts.pop(self.next_bin - KEEP_BINS, None)
        lives = {(gateway_id, source.incarnation) for gateway_id, source in self._sources.items()}
        self._taken = {
            key: spans
            for key, spans in self._taken.items()
            if key[1:] in lives or spans[-1][1] > (self.next_bin - GAP_BINS) * self.bin_s
        }


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


def _mean(total: float, count: float) -> tuple[float, float]:
    return (total / count, count) if count else (math.nan, 0.0)
