"""The single latencies behind a result, for curves. Consumes a `Stored`, ours or vLLM's with details; pure."""

from dataclasses import dataclass
from typing import Literal

from dopd_loadgen.report.metrics import tpots_s, ttfts_s, unsent, window
from dopd_loadgen.report.result import Stored


@dataclass(frozen=True, slots=True)
class Samples:
    """Latencies of completed requests, out of `requests` that were asked."""

    values_s: list[float]
    requests: int


def samples(stored: Stored, metric: Literal["ttft", "tpot"]) -> Samples:
    """TTFT or TPOT of each completed request: of the measured window, or of vLLM's whole run; empty without details."""
    if stored.run is None:
        return _foreign(stored, metric)
    start_s, end_s = window(stored.run)
    inside = [r for r in stored.run.records if start_s <= r.intended_s <= end_s and not unsent(r)]
    if metric == "ttft":
        return Samples(ttfts_s(inside), len(inside))
    # One token has no time per further token and meets every target: 0, so that the curve ends at the attained share.
    made = tpots_s(inside)
    alone = len(ttfts_s(inside)) - len(made)
    return Samples([0.0] * alone + made, len(inside))


def _foreign(stored: Stored, metric: Literal["ttft", "tpot"]) -> Samples:
    keys = stored.keys
    ttfts, itls, lengths, errors = (keys.get(name, []) for name in ("ttfts", "itls", "output_lens", "errors"))
    if not ttfts or not itls or not lengths or not errors:
        return Samples([], 0)
    done = [number for number, length in enumerate(lengths) if length and not errors[number]]
    if metric == "ttft":
        return Samples([ttfts[number] for number in done], len(ttfts))
    return Samples([sum(itls[n]) / (lengths[n] - 1) if lengths[n] > 1 else 0.0 for n in done], len(ttfts))
