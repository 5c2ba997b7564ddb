"""The DOPD authors' own measurements (dopd_testbed_5s.csv.gz, algorithms.md 1.12) as points for a fit.

Consumes the 5 s rows of the frontend's counters; produces 20 s windows of steady state of the runs with one prefill and
one decode instance. There the prefill side is the bottleneck, so the time between first tokens is its service time.
"""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dopd.perf.points import Point

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "profiles"
UNIFORM = (1, 2, 3, 4, 7, 19)
"""Runs whose prompts have 1013 tokens."""
MIXED = (14, 18, 20, 21, 22, 23, 24)
"""Runs of one load with prompts of 569 tokens in the mean; 22 began on 07-14 at 06:45."""
TARGET = 22
DYNAMIC = (26, 27, 28, 29, 31, 32)
"""Replays of one bursty trace; how many instances ran is not recorded."""
DYNAMIC_CONTEXT_TOKENS = 359 + 420 / 2
"""Of a decoding request there: prompt and half the output in the mean of all served (1.12)."""
MIXED_SD_TOKENS = 133.0
"""Of their prompts: how the means of 5 s differ says it (`spread_tokens`), the lengths themselves were not recorded."""
WINDOW_ROWS = 4


@dataclass(frozen=True, slots=True)
class Window:
    """Four scrapes. `decodes` is the time that tokens took, per second: how many requests decode at once."""

    run: int
    requests_per_s: float
    isl_tokens: float
    osl_tokens: float
    ttft_s: float
    itl_s: float
    decodes: float

    @property
    def context_tokens(self) -> float:
        """Live KV: a decoding request has its prompt and in the mean half of its output (algorithms.md D8)."""
        if self.run in DYNAMIC:
            return self.decodes * DYNAMIC_CONTEXT_TOKENS
        return self.decodes * (self.isl_tokens + self.osl_tokens / 2)


def windows(path: Path, runs: tuple[int, ...]) -> list[Window]:
    """The windows of these runs but their first: static runs steady, all places taken in every scrape."""
    rows = defaultdict(list)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            rows[int(row["run"])].append({key: float(value or 0) for key, value in row.items()})
    return [window for run in runs for window in _steady(run, rows[run])]


def _steady(run: int, rows: list[dict[str, float]]) -> Iterator[Window]:
    full = max(row["inflight"] for row in rows)
    for first, last in pairwise(range(WINDOW_ROWS, len(rows) + 1, WINDOW_ROWS)):
        some = rows[first:last]
        total = {key: sum(row[key] for row in some) for key in rows[0]}
        if run in DYNAMIC:
            full = 0.0  # never the same load for long
        if min(row["inflight"] for row in some) < 0.95 * full or not (total["n_osl"] and total["n_started"]):
            continue
        yield Window(
            run=run,
            requests_per_s=total["n_first"] / total["dt_s"],
            isl_tokens=total["isl_sum"] / total["n_started"],
            osl_tokens=total["osl_sum"] / total["n_osl"],
            ttft_s=total["ttft_sum"] / total["n_first"],
            itl_s=total["itl_sum"] / total["n_itl"],
            decodes=total["itl_sum"] / total["dt_s"],
        )


def points(found: list[Window]) -> list[Point]:
    """Each window as one prefill step and one decode step: the mean prompt alone, and the mean running batch."""
    made = []
    for each in found:
        # The length of the prompts computed now is that of those sent some seconds ago: take the run's mean.
        isl = mean([other.isl_tokens for other in found if other.run == each.run])
        square = isl**2 + (MIXED_SD_TOKENS**2 if each.run in MIXED else 0.0)
        made.append(Point("prefill", isl, square, 1, 0, 1 / each.requests_per_s))
        made.append(Point("decode", 0, 0, each.decodes, each.context_tokens, each.itl_s))
    return made


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
