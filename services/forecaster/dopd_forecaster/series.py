"""Counts per bin as series that can be forecast. Pure.

Consumes the windows of gateways by way of `Bins`, and the profiles that turn lengths into work; produces, per closed
bin, one value and one weight for each name of `SERIES`. A bin without requests is a zero, a bin that no gateway told of
is unknown (NaN): the first is news, the second is none.
"""

import math
from collections import deque
from dataclasses import dataclass

from dopd.perf.profile import Profile
from dopd_forecaster.bins import KEEP_BINS, Bins, Counts
from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow

FLOWS = ("requests_per_s", "prefill_work", "decode_work")
MEANS = ("isl_tokens_mean", "isl_square_mean", "osl_tokens_mean", "short_share")
SERIES = FLOWS + MEANS
"""Work is seconds of engine time per second: the engines that would be busy. Means are over requests."""
LENGTH_HALF_LIFE_BINS = 4


@dataclass(slots=True)
class Lengths:
    """Running sums for the decode work of a request, old ones fading."""

    made: float = 0.0
    context: float = 0.0
    completed: float = 0.0
    limit: float = 0.0
    requests: float = 0.0


class Series:
    """The series so far. `prefill` and `decode` turn lengths into work."""

    def __init__(self, bin_s: float, prefill: Profile, decode: Profile, short_tokens: int = 128) -> None:
        self.bin_s = bin_s
        self._prefill, self._decode = prefill, decode
        self._bins = Bins(bin_s, short_tokens)
        self._lengths = Lengths()
        self._values: dict[str, deque[tuple[float, float]]] = {name: deque(maxlen=KEEP_BINS) for name in SERIES}

    @property
    def next_bin(self) -> int | None:
        """The first bin that is open."""
        return self._bins.next_bin

    def add_arrivals(self, window: ArrivalWindow, now_s: float) -> str:
        """Take a window in. Returns why not (`Bins._refusal`), "" when it was taken."""
        reason = self._bins.add_arrivals(window, now_s)
        self._amend()
        return reason

    def add_outcomes(self, window: OutcomeWindow, now_s: float) -> str:
        """As `add_arrivals`."""
        reason = self._bins.add_outcomes(window, now_s)
        self._amend()
        return reason

    def close(self, now_s: float) -> list[int]:
        """Close the bins that every gateway has told of, and those that are overdue; returns their numbers."""
        closed: list[int] = []
        while True:
            if self._bins.skip_gap():
                self._lengths = Lengths()
                for kept in self._values.values():
                    kept.clear()
            number = self._bins.close(now_s)
            if number is None:
                return closed
            sums, share = self._bins.sums(number)
            self._fade(sums)
            for name, pair in self._row(sums, share).items():
                self._values[name].append(pair)
            closed.append(number)

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

    # --- values -------------------------------------------------------------------------------------------------

    def _amend(self) -> None:
        for number in self._bins.amended():
            assert self.next_bin is not None, "an amended bin is closed"
            at = len(self._values[SERIES[0]]) - (self.next_bin - number)
            if at >= 0:
                for name, pair in self._row(*self._bins.sums(number)).items():
                    self._values[name][at] = pair

    def _row(self, sums: Counts, share: float) -> dict[str, tuple[float, float]]:
        """Value and weight of every series. A bin of which half or more was seen counts for the whole."""
        if share < 0.5:
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

    # --- output lengths, known late -----------------------------------------------------------------------------

    def _fade(self, sums: Counts) -> None:
        kept, so_far = 0.5 ** (1 / LENGTH_HALF_LIFE_BINS), self._lengths
        self._lengths = Lengths(
            made=kept * so_far.made + sums["made"],
            context=kept * so_far.context + sums["made_context"],
            completed=kept * so_far.completed + sums["completed"],
            limit=kept * so_far.limit + sums["osl_limit"],
            requests=kept * so_far.requests + sums["requests"],
        )

    def decode_s(self) -> float:
        """Marginal decode seconds of a request: per token, and per token of its context at that token.

        Output lengths are known late, and of requests that run the short ones end first. Tokens made by all requests
        over requests completed is free of that bias in steady state, and with a constant chance to end per token it is
        the maximum-likelihood estimate under right-censoring. Until something has completed, `max_tokens` stands in.
        """
        sums, limit = self._lengths, self.osl_limit()
        tokens = limit if self.osl_from_limit else sums.made / sums.completed
        tokens = min(tokens, limit) if limit else tokens
        context = tokens * (sums.context / sums.made if sums.made else 0.0)
        return self._decode.decode_request_s * tokens + self._decode.decode_context_s * context

    @property
    def osl_from_limit(self) -> bool:
        """Nothing has completed of late."""
        return self._lengths.completed < 0.5

    def osl_limit(self) -> float:
        """Mean `max_tokens` of late; 0 when it is not known."""
        return self._lengths.limit / self._lengths.requests if self._lengths.requests else 0.0


def _mean(total: float, count: float) -> tuple[float, float]:
    return (total / count, count) if count else (math.nan, 0.0)
