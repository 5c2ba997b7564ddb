"""What the latencies of a run are made of. Pure.

Consumes records with timelines; produces, for TTFT and for the wait for the second token, the time spent in each part.
A duration is taken on one clock where it can be; where it cannot, it says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dopd_loadgen.model import Phase, Record
from dopd_loadgen.report.metrics import spread

TTFT = (
    "send_late", "queued", "sent", "prefill_queued", "prefilling", "first_token_sent", "ttft_other", "client_rest",
)  # fmt: skip
"""What TTFT is made of. `send_late`: intended to sent. `sent` and `first_token_sent` end on another clock than they
begin on; together they are what one clock each gives. `ttft_other`: whatever else, as a fetched prefix or a lost
attempt. `client_rest`: the network and the client, that is TTFT from the send less the gateway's.
"""
SECOND = ("handing_over", "kv_transfer", "decode_queued", "first_decode_step", "second_other")
"""What the second token waits for. The first comes from the prefill worker, so that the transfer lies behind it.
`handing_over` begins on the clock of one worker and ends on that of the other.
"""


@dataclass(frozen=True, slots=True)
class PhaseStats:
    """Seconds spent in a phase, over `count` requests; one that did not go through it counts as 0."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


def breakdown(records: Iterable[Record]) -> dict[str, PhaseStats]:
    """The parts named in `TTFT` and their sum `ttft`, those in `SECOND` and their sum `second_token`.

    Of completed requests with a timeline; `SECOND` of those with two tokens or more. Parts add up to the sum request
    by request. Empty when there is no such request.
    """
    told = [r for r in records if not r.failure and r.times_s and r.sent_s is not None and _first(r) is not None]
    groups = {
        ("ttft", TTFT): [_ttft_parts(r) for r in told],
        ("second_token", SECOND): [_second_parts(r) for r in told if sum(r.counts) > 1],
    }
    found: dict[str, PhaseStats] = {}
    for (whole, names), parts in groups.items():
        if parts:
            found |= {name: _stats([each[name] for each in parts]) for name in names}
            found[whole] = _stats([sum(each.values()) for each in parts])
    return found


def _stats(values_s: Sequence[float]) -> PhaseStats:
    made = spread(values_s, (50, 90, 99))
    assert made.mean_s is not None  # there are values
    return PhaseStats(made.n, made.mean_s, *made.percentiles_s.values())


def _first(record: Record) -> int | None:
    """Where in the timeline the first token left its worker."""
    return next((i for i, phase in enumerate(record.timeline) if phase.name == "first_token_sent"), None)


def _ttft_parts(record: Record) -> dict[str, float]:
    at = _first(record)
    assert at is not None and record.sent_s is not None  # `breakdown` has looked
    before = record.timeline[: at + 1]
    parts = _durations(before, TTFT, "ttft_other")
    parts["send_late"] = record.sent_s - record.intended_s
    parts["client_rest"] = record.times_s[0] - record.sent_s - (before[-1].end_s - before[0].start_s)
    return parts


def _second_parts(record: Record) -> dict[str, float]:
    at = _first(record)
    assert at is not None
    after = record.timeline[at + 1 :]
    end = next((i for i, phase in enumerate(after) if phase.name in ("decoding", "finished")), len(after))
    return _durations(after[:end], SECOND, "second_other")


def _durations(phases: Sequence[Phase], names: Sequence[str], other: str) -> dict[str, float]:
    parts = dict.fromkeys(names, 0.0)
    for phase in phases:
        parts[phase.name if phase.name in parts else other] += phase.end_s - phase.start_s
    return parts
