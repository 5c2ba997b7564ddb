"""What is behind a result's figures: single latencies, and their parts. Consumes a `Stored`, ours or vLLM's; pure."""

from dataclasses import dataclass
from typing import Literal

from dopd_loadgen.breakdown import SECOND, TTFT, PhaseStats, breakdown
from dopd_loadgen.model import Record
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
    inside = _inside(stored)
    if metric == "ttft":
        return Samples(ttfts_s(inside), len(inside))
    # One token has no time per further token and meets every target: 0, so that the curve ends at the attained share.
    made = tpots_s(inside)
    alone = len(ttfts_s(inside)) - len(made)
    return Samples([0.0] * alone + made, len(inside))


def parts_s(stored: Stored, of: Literal["ttft", "second"]) -> dict[str, float]:
    """Mean seconds per part of TTFT, or of the wait for the second token; empty where no timelines are there.

    `sent` and `first_token_sent` end on another clock than they begin on and are right only together: one part.
    """
    stats = breakdown(_inside(stored))
    parts = {name: stats[name].mean_s for name in (TTFT if of == "ttft" else SECOND) if name in stats}
    if of == "ttft" and parts:
        parts["sent"] += parts.pop("first_token_sent")
    return {name.replace("_", " "): seconds for name, seconds in parts.items() if seconds > 0}


def part_rows(stored: Stored) -> list[tuple[str, PhaseStats]]:
    """Every part that took time, and the sums `ttft` and `second token`; empty where no timelines are there."""
    stats = breakdown(_inside(stored))
    order = (*TTFT, "ttft", *SECOND, "second_token")
    return [(name.replace("_", " "), stats[name]) for name in order if name in stats and stats[name].p99_s > 5e-6]


def _inside(stored: Stored) -> list[Record]:
    if stored.run is None:
        return []
    start_s, end_s = window(stored.run)
    return [r for r in stored.run.records if start_s <= r.intended_s <= end_s and not unsent(r)]


def _foreign(stored: Stored, metric: Literal["ttft", "tpot"]) -> Samples:
    keys = stored.keys
    ttfts, itls, lengths, errors = (keys.get(name, []) for name in ("ttfts", "itls", "output_lens", "errors"))
    if not ttfts or not itls or not lengths or not errors:
        return Samples([], 0)
    done = [number for number, length in enumerate(lengths) if length and not errors[number]]
    if metric == "ttft":
        return Samples([ttfts[number] for number in done], len(ttfts))
    return Samples([sum(itls[n]) / (lengths[n] - 1) if lengths[n] > 1 else 0.0 for n in done], len(ttfts))
