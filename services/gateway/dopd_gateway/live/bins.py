"""What became of this gateway's requests, in bins of `BIN_S`. Pure.

Consumes requests that are over, and how long the queue is; produces a row for each bin. Latencies are counted in cells
that are 5 % wide: so a bin takes the same room however many requests it has, and quantiles are right within 2.5 %.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from dopd_gateway.core import End
from dopd_gateway.live import KEEP_S

BIN_S = 5.0
LAST_BINS = 12
"""Bins that figures of "the last minute" are from."""
CELL = math.log(1.05)
LEAST_S = 1e-5


@dataclass(slots=True)
class Bin:
    """Requests that ended in [start_s, start_s + BIN_S). `waiting` is the longest that the queue was seen."""

    start_s: float
    ended: int = 0
    failed: int = 0
    met: int = 0
    waiting: int = 0
    ttft: Counter[int] = field(default_factory=Counter)
    tpot: Counter[int] = field(default_factory=Counter)

    def add(self, end: End, ttft_s: float | None, tpot_s: float | None, met: bool) -> None:
        """One request. A TPOT is only of those that have one and were completed."""
        self.ended += 1
        self.failed += end not in ("stop", "length")
        self.met += met
        if ttft_s is not None:
            self.ttft[cell(ttft_s)] += 1
        if tpot_s is not None:
            self.tpot[cell(tpot_s)] += 1

    def include(self, other: "Bin") -> None:
        """Another bin's requests."""
        self.ended, self.failed, self.met = self.ended + other.ended, self.failed + other.failed, self.met + other.met
        self.waiting = max(self.waiting, other.waiting)
        self.ttft.update(other.ttft)
        self.tpot.update(other.tpot)

    def row(self) -> dict[str, float]:
        """For the page; seconds, and no key for what there is nothing of."""
        row: dict[str, float] = {"ended": self.ended, "failed": self.failed, "met": self.met, "waiting": self.waiting}
        return row | quantiles("ttft", self.ttft) | quantiles("tpot", self.tpot)


@dataclass(slots=True)
class Bins:
    """The present bin, the rows of those before it, and the bins of the last minute."""

    now: Bin
    rows: dict[float, dict[str, float]] = field(default_factory=dict)
    last: deque[Bin] = field(default_factory=lambda: deque(maxlen=LAST_BINS))

    @classmethod
    def since(cls, now_s: float) -> "Bins":
        """Nothing yet."""
        return cls(Bin(begin(now_s)))

    def at(self, now_s: float) -> Bin:
        """The bin of this time; those before it are closed."""
        if now_s >= self.now.start_s + BIN_S:
            self.rows[self.now.start_s] = self.now.row()
            self.last.append(self.now)
            self.now = Bin(begin(now_s))
            self.rows = {at_s: row for at_s, row in self.rows.items() if at_s >= now_s - KEEP_S}
        return self.now

    def last_minute(self, now_s: float) -> dict[str, float]:
        """One row of the last bins and the present one."""
        bins = [one for one in (*self.last, self.now) if one.start_s > now_s - (LAST_BINS + 1) * BIN_S]
        whole = Bin(min((one.start_s for one in bins), default=now_s))
        for one in bins:
            whole.include(one)
        return whole.row() | {"since_s": whole.start_s}


def begin(now_s: float) -> float:
    """Of the bin of this time."""
    return now_s // BIN_S * BIN_S


def cell(value_s: float) -> int:
    """The cell of a latency."""
    return round(math.log(max(value_s, LEAST_S)) / CELL)


def quantiles(name: str, counted: Counter[int]) -> dict[str, float]:
    """Median and 90th percentile by nearest rank, such as {"ttft_p50_s": 0.21, "ttft_p90_s": 0.4}."""
    if not counted:
        return {}
    values = sorted(counted.elements())
    at = {share: values[math.ceil(share / 100 * len(values)) - 1] for share in (50, 90)}
    return {f"{name}_p{share}_s": float(f"{math.exp(place * CELL):.3g}") for share, place in at.items()}
