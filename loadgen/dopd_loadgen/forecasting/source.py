"""What a back-test looks at: a trace's requests as gateways would have counted them, or a table of rates.

Consumes a file or a preset; produces a `Case`: what was seen when (`Feed`) and, bin by bin, what was true (`Truth`).
They differ for output lengths alone, which are seen only as tokens are made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dopd.errors import LoadError
from dopd.perf.profile import Profile
from dopd_forecaster.bins import KEEP_BINS
from dopd_forecaster.series import FLOWS, SERIES, Series
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import source as text
from dopd_loadgen.workload.read import csv_rows, real, seconds
from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow

TABLES = {
    ("model", "start_s", "rate"): ("requests_per_s", (1, 6)),
    ("minute", "tokens_per_s"): ("tokens_per_s", (1, 5)),
}
"""Columns of files that hold one rate per bin: the series' name, and the horizons in bins unless they are given."""


class Feed(Protocol):
    """The past of some series, one bin after the other."""

    def step(self) -> None:
        """Let one more bin become known."""

    def values(self, name: str) -> list[float]:
        """As `Series.values`."""

    def actual(self, name: str, first: int, bins: int) -> tuple[float, float]:
        """As `Series.actual`."""


@dataclass(slots=True)
class Truth:
    """Per bin the sum and the sum of squares over requests, and their number; for rates the value and no noise."""

    total: list[float]
    square: list[float] = field(default_factory=list)
    count: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Case:
    """One source, `bins` of `bin_s`. `horizons_bins` is what it is good for unless the caller wants others."""

    title: str
    bin_s: float
    bins: int
    truth: dict[str, Truth]
    feed: Feed
    horizons_bins: tuple[int, ...] = (1, 6, 30)


# --- requests ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pace:
    """How fast the served system is taken to answer: what makes output lengths late."""

    ttft_s: float = 0.5
    tpot_s: float = 0.03


def of_requests(
    title: str, planned: Sequence[Planned], bin_s: float, profiles: tuple[Profile, Profile], short_tokens: int,
    pace: Pace,
) -> Case:  # fmt: skip
    """Whole bins only. Raises LoadError when there are fewer than four."""
    bins = int(planned[-1].at_s // bin_s)
    if bins < 4:
        raise LoadError(title, f"spans {planned[-1].at_s:.0f} s, {bins} bins of {bin_s:g} s: too short to forecast")
    inside = [one for one in planned if one.at_s < bins * bin_s]
    return Case(
        title, bin_s, bins, _truth(inside, bins, bin_s, profiles, short_tokens),
        _Replayed(inside, bins, Series(bin_s, *profiles, short_tokens), pace),
    )  # fmt: skip


def _truth(
    planned: Sequence[Planned], bins: int, bin_s: float, profiles: tuple[Profile, Profile], short_tokens: int
) -> dict[str, Truth]:
    prefill, decode = profiles
    made = {name: Truth([0.0] * bins, [0.0] * bins, [0.0] * bins) for name in SERIES}
    for one in planned:
        place, isl, osl = int(one.at_s // bin_s), one.isl_tokens, one.osl_tokens
        context = osl * isl + osl * (osl - 1) / 2
        prefill_s = prefill.prefill_fixed_s + prefill.prefill_token_s * isl + prefill.prefill_token2_s * isl * isl
        values = {
            "requests_per_s": 1 / bin_s,
            "prefill_work": prefill_s / bin_s,
            "decode_work": (decode.decode_request_s * osl + decode.decode_context_s * context) / bin_s,
            "isl_tokens_mean": isl,
            "isl_square_mean": isl * isl,
            "osl_tokens_mean": osl,
            "short_share": float(isl < short_tokens),
        }
        for name, value in values.items():
            truth = made[name]
            truth.total[place] += value
            truth.square[place] += value * value
            truth.count[place] += 1
    return made


class _Replayed:
    """Windows of one gateway as the requests of a trace would have given them."""

    def __init__(self, planned: Sequence[Planned], bins: int, series: Series, pace: Pace) -> None:
        self._series, self._bin_s = series, series.bin_s
        self._arrived: list[list[Planned]] = [[] for _ in range(bins)]
        self._made = [[0, 0, 0] for _ in range(bins)]
        for one in planned:
            self._arrived[int(one.at_s // self._bin_s)].append(one)
            self._answer(one, pace, bins)
        self._next = 0

    def _answer(self, one: Planned, pace: Pace, bins: int) -> None:
        """Its tokens into the bins in which they are made: completed, tokens, and their contexts."""
        first_s, made = one.at_s + pace.ttft_s, 0
        for place in range(int(first_s // self._bin_s), bins):
            left_s = (place + 1) * self._bin_s - first_s
            upto = min(one.osl_tokens, math.ceil(left_s / pace.tpot_s)) if pace.tpot_s else one.osl_tokens
            counted, new = self._made[place], upto - made
            counted[1] += new
            counted[2] += new * one.isl_tokens + (upto * (upto - 1) - made * (made - 1)) // 2
            made = upto
            if made == one.osl_tokens:
                counted[0] += 1
                return

    def step(self) -> None:
        ones, (completed, made, context) = self._arrived[self._next], self._made[self._next]
        start_s, end_s = self._next * self._bin_s, (self._next + 1) * self._bin_s
        histogram = [0] * 32
        for one in ones:
            histogram[one.isl_tokens.bit_length()] += 1
        outcomes = OutcomeWindow(
            gateway_id="g1", incarnation="g1-1", start_s=start_s, end_s=end_s, completed=completed, failed=0,
            osl_tokens_sum=0, gateway_ttft_s_sum=0.0, tpot_s_sum=0.0, made_tokens=made, made_context_tokens=context,
        )  # fmt: skip
        # The limit says nothing here: a trace has none.
        arrivals = ArrivalWindow(
            gateway_id="g1", incarnation="g1-1", start_s=start_s, end_s=end_s, requests=len(ones),
            isl_tokens_sum=sum(one.isl_tokens for one in ones),
            isl_tokens_square_sum=sum(one.isl_tokens**2 for one in ones), osl_tokens_limit_sum=0,
            isl_tokens_histogram=tuple(histogram),
        )  # fmt: skip
        for refused in (self._series.add_outcomes(outcomes, end_s), self._series.add_arrivals(arrivals, end_s)):
            assert not refused, refused
        self._series.close(end_s)
        self._next += 1

    def values(self, name: str) -> list[float]:
        return self._series.values(name)

    def actual(self, name: str, first: int, bins: int) -> tuple[float, float]:
        return self._series.actual(name, first, bins)


# --- tables of rates --------------------------------------------------------------------------------------------------


def is_table(path: Path) -> bool:
    """Whether the file holds a rate per bin instead of requests."""
    return _columns(path) is not None


def _columns(path: Path) -> tuple[str, ...] | None:
    found = {name.strip() for name in text.first_line(path).split(",")}
    return next((columns for columns in TABLES if found.issuperset(columns) and "client" not in found), None)


def of_table(path: Path, model: str | None) -> Case:
    """A `servegen_rate_*` or `burstgpt*_tokens_per_min` file. Bins that are absent count as 0 in the second, where
    the source says so; a rate of 0 in the first is a hole in the collection and unknown. Raises LoadError."""
    columns = _columns(path)
    assert columns is not None, "asked before"
    name, horizons = TABLES[columns]
    if name == "tokens_per_s":
        found = {
            int(seconds(f"{path}, row {number}", "minute", row["minute"])): real(
                f"{path}, row {number}", "tokens_per_s", row["tokens_per_s"]
            )
            for number, row in csv_rows(path, columns)
        }
        return _rates(str(path), 60.0, [found.get(at, 0.0) for at in range(max(found, default=-1) + 1)], name, horizons)
    models: dict[str, dict[float, float]] = {}
    for number, row in csv_rows(path, columns):
        where = f"{path}, row {number}"
        models.setdefault(row["model"], {})[seconds(where, "start_s", row["start_s"])] = real(
            where, "rate", row["rate"]
        )
    if (model is None and len(models) > 1) or (model is not None and model not in models):
        raise LoadError("--servegen-model", f"{path} has {', '.join(sorted(models))}: choose one")
    rates = models[model or next(iter(models))]
    values = [rates.get(at * 600.0, 0.0) or math.nan for at in range(int(max(rates) // 600) + 1)]
    return _rates(f"{path} {model or ''}".strip(), 600.0, values, name, horizons)


def _rates(title: str, bin_s: float, values: list[float], name: str, horizons: tuple[int, ...]) -> Case:
    if len(values) < 4:
        raise LoadError(title, f"has {len(values)} bins: too few to forecast")
    return Case(title, bin_s, len(values), {name: Truth(values)}, _Listed(values), horizons)


class _Listed:
    """Rates that become known one after the other."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values, self._known = values, 0

    def step(self) -> None:
        self._known += 1

    def values(self, name: str) -> list[float]:
        return list(self._values[max(0, self._known - KEEP_BINS) : self._known])

    def actual(self, name: str, first: int, bins: int) -> tuple[float, float]:
        some = self._values[first : first + bins]
        return (math.nan, 0.0) if any(map(math.isnan, some)) else (sum(some) / bins, 1.0)


def actual(truth: Truth, name: str, first: int, bins: int) -> tuple[float, float, float]:
    """What was true of bins from `first` on: value, weight, and the mean absolute error that a forecaster who knew the
    rate and the distribution would have made (requests independent, normal approximation, workloads.md 1.3)."""
    span = slice(first, first + bins)
    total = sum(truth.total[span])
    if not truth.count:
        return total / bins, 1.0, math.nan
    square, count = sum(truth.square[span]), sum(truth.count[span])
    if name in FLOWS:
        return total / bins, 1.0, math.sqrt(2 / math.pi * square) / bins
    if not count:
        return math.nan, 0.0, math.nan
    mean = total / count
    spread = max(0.0, square / count - mean * mean)
    return mean, count, math.sqrt(2 / math.pi * spread / count)
