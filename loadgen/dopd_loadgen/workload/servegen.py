"""Requests like those of a ServeGen service: arrivals of each of its clients, lengths of all.

Consumes `servegen_clients_*.csv` (rate, coefficient of variation and pattern of each client in windows of ten minutes)
and the `servegen_lengths_*.csv` beside it (length histograms of six hours); produces requests. The data are parameters,
not requests: arrivals and lengths are drawn from a seed.
"""

import heapq
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload.arrivals import enough
from dopd_loadgen.workload.read import SERVEGEN, Trace, csv_rows, real, seconds, tokens

WINDOW_S = 600.0
CV_LIMITS = (0.05, 20.0)
"""A client of a few requests in a window may have a CV of 1000, which no law of gaps shows in ten minutes."""
LENGTHS = ("model", "start_s", "field", "token_lo", "token_hi", "prob")
_FIELDS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Window:
    """What one client does in ten minutes from `start_s` on: `pattern` is the law of its gaps."""

    client: str
    start_s: float
    rate_rps: float
    cv: float
    pattern: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Lengths from `start_s` on: bins [low, high) in tokens and the bins' running shares."""

    start_s: float
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    upto: NDArray[np.float64]

    def draw(self, rng: Generator, count: int) -> NDArray[np.int64]:
        """Any length of a bin is as likely as another of it; none is below 1."""
        which = np.minimum(np.searchsorted(self.upto, rng.random(count), side="right"), len(self.upto) - 1)
        drawn: NDArray[np.int64] = np.maximum(1, rng.integers(self.low[which], self.high[which]))
        return drawn


def read_servegen(path: Path, model: str | None, rng: Generator, start_s: float, end_s: float) -> Trace:
    """The requests of [start_s, end_s) of one model's clients; `phase` is the client. Raises LoadError."""
    name, windows = _windows(path, model, start_s, end_s)
    enough(sum(one.rate_rps for one in windows) * WINDOW_S)
    arrival_rng, isl_rng, osl_rng = rng.spawn(3)
    by_window = [[(at_s, one.client) for at_s in arrivals_s(one, arrival_rng)] for one in windows]
    arrived = [one for one in heapq.merge(*by_window) if start_s <= one[0] < end_s]
    if not arrived:
        raise LoadError(str(path), f"no arrivals of {name} from {start_s:g} s to {end_s:g} s")
    at_s = np.array([at for at, _ in arrived])
    lengths = _histograms(lengths_beside(path), name)
    isl = _drawn(lengths["input_tokens"], isl_rng, at_s).tolist()
    osl = _drawn(lengths["output_tokens"], osl_rng, at_s).tolist()
    planned = [Planned(0, at, i, o, phase=client) for (at, client), i, o in zip(arrived, isl, osl, strict=True)]
    odd = sum(not CV_LIMITS[0] <= one.cv <= CV_LIMITS[1] for one in windows)
    return Trace("servegen", planned, clipped={"client windows' cv": odd} if odd else {})


def arrivals_s(window: Window, rng: Generator) -> list[float]:
    """A stationary renewal process with the window's rate, and gaps of its pattern and coefficient of variation."""
    gaps = _gamma if window.pattern == "Gamma" else _weibull
    cv = min(max(window.cv, CV_LIMITS[0]), CV_LIMITS[1])
    until = window.rate_rps * WINDOW_S
    # We begin somewhere within a length-biased gap; beginning with a whole one would give too many points.
    found = [rng.random(1) * gaps(rng, cv, 1, True)]
    while found[-1][-1] < until:
        found.append(found[-1][-1] + np.cumsum(gaps(rng, cv, 64 + int(until), False)))
    points = np.concatenate(found)
    times: list[float] = (window.start_s + points[points < until] / (window.rate_rps or 1.0)).tolist()
    return times


def _gamma(rng: Generator, cv: float, count: int, biased: bool) -> NDArray[np.float64]:
    """Gaps of mean 1; `biased` as often as they are long."""
    shape = 1 / cv**2
    return rng.gamma(shape + biased, 1 / shape, count)


def _weibull(rng: Generator, cv: float, count: int, biased: bool) -> NDArray[np.float64]:
    """As `_gamma`: a Weibull is a power of an exponential, and of a gamma when it is length-biased."""
    power = 1 / _weibull_shape(cv)
    drawn: NDArray[np.float64] = rng.gamma(1 + power * biased, 1.0, count) ** power / math.gamma(1 + power)
    return drawn


def _weibull_shape(cv: float) -> float:
    """By bisection: cv² + 1 = Γ(1 + 2/k) / Γ(1 + 1/k)², which falls in k."""
    low, high = 0.05, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        too_wide = math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle) > math.log1p(cv * cv)
        low, high = (middle, high) if too_wide else (low, middle)
    return (low + high) / 2


def _windows(path: Path, model: str | None, start_s: float, end_s: float) -> tuple[str, list[Window]]:
    """The one model's name, and its windows that touch [start_s, end_s)."""
    found: dict[str, list[Window]] = defaultdict(list)
    last_s: dict[str, float] = {}
    for number, row in csv_rows(path, SERVEGEN):
        window = _window(f"{path}, row {number}", row)
        touches = window.start_s < end_s and window.start_s + WINDOW_S > start_s
        found[row["model"]] += [window] if touches else []
        last_s[row["model"]] = max(last_s.get(row["model"], 0.0), window.start_s + WINDOW_S)
    if not found:
        raise LoadError(str(path), "has a header and no rows")
    names = ", ".join(sorted(found))
    if model is None and len(found) > 1:
        raise LoadError("--servegen-model", f"{path} has several models: choose one of {names}")
    name = model or names
    if name not in found:
        raise LoadError("--servegen-model", f"{name!r} is not in {path}, which has {names}")
    if end_s > last_s[name]:
        raise LoadError("--duration-s", f"{path} ends at {last_s[name]:g} s, asked for is up to {end_s:g} s")
    return name, found[name]


def _window(where: str, row: dict[str, str]) -> Window:
    rate, cv = real(where, "rate", row["rate"]), real(where, "cv", row["cv"])
    if not 0 <= rate <= 1e6:
        raise LoadError(where, f"rate is {rate}, not in [0, 1e6]")
    if not cv > 0:
        raise LoadError(where, f"cv is {cv}, not above 0")
    if row["pattern"] not in ("Gamma", "Weibull"):
        raise LoadError(where, f"pattern is {row['pattern']!r}, neither Gamma nor Weibull")
    return Window(row["client"], seconds(where, "start_s", row["start_s"]), rate, cv, row["pattern"])


def lengths_beside(path: Path) -> Path:
    """`servegen_clients_10min.csv.gz` has its lengths in `servegen_lengths_6h.csv.gz`."""
    found = sorted(path.parent.glob("servegen_lengths*.csv*"))
    if len(found) != 1:
        raise LoadError(str(path), f"needs one servegen_lengths*.csv beside it, found {len(found)}")
    return found[0]


def _histograms(path: Path, model: str) -> dict[str, list[Histogram]]:
    """A field's histograms, in order of time. Raises LoadError when the model has none."""
    bins: dict[tuple[str, float], list[tuple[int, int, float]]] = defaultdict(list)
    for number, row in csv_rows(path, LENGTHS):
        where = f"{path}, row {number}"
        low, high = tokens(where, "token_lo", row["token_lo"]), tokens(where, "token_hi", row["token_hi"])
        share = real(where, "prob", row["prob"])
        if low >= high or share < 0:
            raise LoadError(where, f"not a bin: [{low}, {high}) with {share}")
        if row["model"] == model:
            bins[row["field"], seconds(where, "start_s", row["start_s"])].append((low, high, share))
    made: dict[str, list[Histogram]] = {name: [] for name in _FIELDS}
    for (name, start_s), some in sorted(bins.items()):
        low_edges, high_edges, shares = (np.array(column) for column in zip(*some, strict=True))
        if name in made and shares.sum() > 0:
            upto = np.cumsum(shares) / shares.sum()
            made[name].append(Histogram(start_s, low_edges.astype(int), high_edges.astype(int), upto))
    for name, histograms in made.items():
        if not histograms:
            raise LoadError(str(path), f"has no {name} of {model}")
    return made


def _drawn(histograms: list[Histogram], rng: Generator, at_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """A length for each arrival (in order of time), by the histogram of its time."""
    starts = [one.start_s for one in histograms]
    which = np.maximum(0, np.searchsorted(starts, at_s, side="right") - 1)
    parts = [one.draw(rng, int((which == number).sum())) for number, one in enumerate(histograms)]
    return np.concatenate(parts)
