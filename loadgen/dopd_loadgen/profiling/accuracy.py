"""How far an emulation is from its engine. Pure; consumes the runs of both, produces errors, limits and a verdict.

An error is that of the emulation's mean over its runs against the engine's. The limit of a mean is a floor, or 1.5
times the engine's own spread between repeats where that is more: nothing can be told apart below it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dopd.errors import LoadError
from dopd_loadgen.model import Record, Run
from dopd_loadgen.report.metrics import tpots_s, ttfts_s

FLOORS = {"ttft": 0.15, "tpot": 0.05}
SPREADS = 1.5
PERCENTILES = (50, 90, 99)
FIGURES = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
LATENCIES: dict[str, Callable[[Iterable[Record]], list[float]]] = {"ttft": ttfts_s, "tpot": tpots_s}


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of one latency, in seconds per run. `error` and `spread` are shares of the engine's mean.

    `spread` is the standard deviation between the engine's runs; `limit` is there for means.
    """

    latency: str
    figure: str
    engine_s: list[float]
    emulation_s: list[float]
    error: float
    spread: float
    limit: float | None

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; without one it always is."""
        return self.limit is None or abs(self.error) <= self.limit


def compared(engine: Sequence[Run], emulation: Sequence[Run]) -> list[Compared]:
    """TTFT and TPOT: mean, P50, P90, P99. Raises LoadError when there is nothing to compare."""
    rows = []
    for latency in LATENCIES:
        sides = [[figures(run, latency) for run in runs] for runs in (engine, emulation)]
        for figure in FIGURES:
            real, emulated = ([run[figure] for run in side] for side in sides)
            rows.append(_row(latency, figure, real, emulated))
    return rows


def figures(run: Run, latency: str) -> dict[str, float]:
    """Mean and percentiles of one run, in seconds. Raises LoadError when no request has this latency."""
    values = LATENCIES[latency](run.records)
    if not values:
        raise LoadError("workload", f"has no request with a {latency.upper()}; give answers of two tokens and more")
    percentiles = np.percentile(values, PERCENTILES).tolist()
    return dict(zip(FIGURES, [fmean(values), *percentiles], strict=True))


def _row(latency: str, figure: str, real: list[float], emulated: list[float]) -> Compared:
    mean_s = fmean(real)
    error = fmean(emulated) / mean_s - 1
    spread = stdev(real) / mean_s if len(real) > 1 else 0.0
    limit = max(FLOORS[latency], SPREADS * spread) if figure == "mean" else None
    if not math.isfinite(error):
        raise LoadError(latency.upper(), f"{fmean(emulated):g} s against {mean_s:g} s is no comparison")
    return Compared(latency, figure, real, emulated, error, spread, limit)


def doubts(rows: Sequence[Compared]) -> list[str]:
    """Means whose limit the engine's own spread has widened to more than twice its floor, in words."""
    return [
        f"mean {row.latency.upper()} of the engine itself varies by {row.spread * 100:.0f} % between runs: "
        "this says little; repeat it on a quiet machine"
        for row in rows
        if row.limit is not None and row.limit > 2 * FLOORS[row.latency]
    ]


def as_json(rows: Sequence[Compared]) -> dict[str, Any]:
    """For the result file."""
    return {"rows": [asdict(row) | {"passed": row.passed} for row in rows], "passed": all(row.passed for row in rows)}


def said(rows: Sequence[Compared]) -> list[str]:
    """A table and the verdict, one line each; milliseconds and per cent."""
    lines = [f"{'':10}{'engine ms':>11}{'emulated':>11}{'error %':>9}{'spread %':>10}{'limit %':>9}"]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit * 100:9.1f}  {'ok' if row.passed else 'MISSED'}"
        lines.append(
            f"{row.latency.upper() + ' ' + row.figure:10}{fmean(row.engine_s) * 1e3:11.3f}"
            f"{fmean(row.emulation_s) * 1e3:11.3f}{row.error * 100:+9.1f}{row.spread * 100:10.1f}{limit}"
        )
    return lines
