"""What a preset is compared by: figures of a trace, and of what the preset generates. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopd_loadgen.model import Planned
from dopd_loadgen.workload.stats import LengthStats, stats_of

Array = NDArray[np.float64]
Table = dict[str, Any]


def figures_of(planned: Sequence[Planned], span_s: float) -> Table:
    """Of requests: rate, bursts, lengths, repeated blocks. Those that cannot be told are not there."""
    stats = stats_of(planned, span_s)
    found: Table = {
        "rate_rps": stats.rate_rps, "peak_to_mean": stats.peak_to_mean, "gap_cv": stats.gap_cv,
        **{f"dispersion_{window_s}s": value for window_s, value in stats.dispersion.items()},
        "dispersion_30s": dispersion(counts_of(planned, 30.0, span_s)),
        "correlation_60s": correlation(counts_of(planned, 60.0, span_s)),
        **_length_figures("isl", stats.isl), **_length_figures("osl", stats.osl),
        "repeated_blocks": stats.repeated_blocks,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _length_figures(name: str, length: LengthStats) -> Table:
    return {f"{name}_{which}": getattr(length, which) for which in ("mean", "p50", "p90", "p99")}


def minute_figures(tokens: Array) -> Table:
    """Of tokens per minute."""
    tens = tokens[: len(tokens) // 10 * 10].reshape(-1, 10).sum(1)
    return {
        "tokens_per_s": float(tokens.mean()) / 60,
        "peak_to_mean": float(tokens.max() / tokens.mean()),
        "cv_60s": float(tokens.std() / tokens.mean()),
        "cv_600s": float(tens.std() / tens.mean()),
        "empty_minutes": float((tokens == 0).mean()),
        "correlation_60s": correlation(tokens),
    }


def compared(figures: Table, generated: Sequence[Table]) -> Table:
    """The mean over the seeds against the trace."""
    mean = {name: float(np.mean([one[name] for one in generated])) for name in figures}
    return {
        "seeds": len(generated),
        "real": figures,
        "generated": mean,
        "seed_sd": {name: float(np.std([one[name] for one in generated])) for name in figures},
        "error_percent": {
            name: 100 * (mean[name] / value - 1)
            for name, value in figures.items()
            if value and "correlation" not in name
        },
    }


def counts_of(planned: Sequence[Planned], window_s: float, span_s: float) -> Array:
    """Arrivals in each whole window."""
    windows = int(span_s / window_s)
    at_s = np.array([one.at_s for one in planned])
    return np.bincount((at_s / window_s).astype(int), minlength=windows)[:windows].astype(float)


def dispersion(counts: Array) -> float:
    """Variance over mean."""
    return float(counts.var() / counts.mean())


def correlation(series: Array) -> float:
    """With itself, one step later."""
    return float(np.corrcoef(series[:-1], series[1:])[0, 1])


def tokens_per_minute(planned: Sequence[Planned], minutes: int) -> Array:
    """Input and output tokens of the requests that arrive in each minute."""
    at_s = np.array([one.at_s for one in planned])
    weights = np.array([one.isl_tokens + one.osl_tokens for one in planned], float)
    return np.bincount((at_s / 60).astype(int), weights, minutes).astype(float)
