"""What a load is like, in numbers: rate, bursts, lengths, tokens per second, shared prefixes.

Consumes the planned requests; produces `Stats`. Pure. What cannot be told from so few requests is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_loadgen.model import Planned

WINDOWS_S = (1, 10, 60)


@dataclass(frozen=True, slots=True)
class LengthStats:
    """Of one length, in tokens. `below_128` and `below_512` are shares of the requests."""

    mean: float
    p5: float
    p50: float
    p90: float
    p99: float
    max: int
    below_128: float
    below_512: float


@dataclass(frozen=True, slots=True)
class Stats:
    """Of a load. Rates are per second of `span_s`.

    `peak_minute_rps` is the fullest of the whole minutes from the start. `dispersion[w]` is the variance of the counts
    in windows of w seconds over their mean: 1 for Poisson. `gap_cv` is the standard deviation of the gaps between
    arrivals over their mean. `repeated_blocks` is the share of prompt blocks that an earlier prompt had.
    """

    requests: int
    span_s: float
    rate_rps: float | None
    peak_minute_rps: float | None
    dispersion: dict[int, float | None]
    gap_cv: float | None
    isl: LengthStats
    osl: LengthStats
    input_tps: float | None
    output_tps: float | None
    repeated_blocks: float | None

    @property
    def peak_to_mean(self) -> float | None:
        """The fullest minute's rate over the mean rate."""
        return self.peak_minute_rps / self.rate_rps if self.peak_minute_rps and self.rate_rps else None


def stats_of(planned: Sequence[Planned], span_s: float | None = None) -> Stats:
    """The figures of a load of `span_s` seconds (by default up to its last arrival). Raises LoadError for none."""
    if not planned:
        raise LoadError("load", "has no request")
    at_s = np.array([one.at_s for one in planned])
    isl, osl = np.array([one.isl_tokens for one in planned]), np.array([one.osl_tokens for one in planned])
    span = span_s or float(at_s[-1])
    return Stats(
        requests=len(planned),
        span_s=span,
        rate_rps=len(planned) / span if span else None,
        peak_minute_rps=_peak(at_s, span),
        dispersion={window_s: _dispersion(at_s, window_s, span) for window_s in WINDOWS_S},
        gap_cv=_variation(np.diff(at_s)),
        isl=_lengths(isl),
        osl=_lengths(osl),
        input_tps=float(isl.sum()) / span if span else None,
        output_tps=float(osl.sum()) / span if span else None,
        repeated_blocks=repeated_blocks(planned),
    )


def busy(at_s: NDArray[np.float64], window_s: float, span_s: float) -> tuple[NDArray[np.int64], int]:
    """Arrivals in the windows of the span that have any, and how many whole windows the span has."""
    windows = int(span_s / window_s)
    within = at_s[at_s < windows * window_s]
    return np.unique((within / window_s).astype(np.int64), return_counts=True)[1], windows


def repeated_blocks(planned: Sequence[Planned]) -> float | None:
    """Share of the prompts' blocks that an earlier prompt had; None when no prompt has blocks."""
    seen: set[int] = set()
    for one in planned:
        seen.update(one.blocks)
    total = sum(len(one.blocks) for one in planned)
    return 1 - len(seen) / total if total else None


def _dispersion(at_s: NDArray[np.float64], window_s: float, span_s: float) -> float | None:
    found, windows = busy(at_s, window_s, span_s)
    if windows < 2 or not len(found):
        return None
    mean = found.sum() / windows
    return float((found**2).sum() / windows - mean**2) / float(mean)


def _peak(at_s: NDArray[np.float64], span_s: float) -> float | None:
    found, windows = busy(at_s, 60, span_s)
    return float(found.max(initial=0)) / 60 if windows else None


def _variation(gaps_s: NDArray[np.float64]) -> float | None:
    return float(gaps_s.std() / gaps_s.mean()) if len(gaps_s) > 1 and gaps_s.any() else None


def _lengths(tokens: NDArray[np.int64]) -> LengthStats:
    p5, p50, p90, p99 = (float(value) for value in np.quantile(tokens, [0.05, 0.5, 0.9, 0.99]))
    below_128, below_512 = float((tokens < 128).mean()), float((tokens < 512).mean())
    return LengthStats(float(tokens.mean()), p5, p50, p90, p99, int(tokens.max()), below_128, below_512)
