"""What a reader must know before the figures, in words. Consumes a `Summary`; produces sentences. Pure."""

from dopd_loadgen.report.summary import Summary


def notes(summary: Summary) -> list[str]:
    """The gravest first; none for a clean open-loop run."""
    said = (_empty(summary), _interrupted(summary), _degraded(summary), _closed_loop(summary), _few(summary))
    return [note for note in said if note]


def _empty(summary: Summary) -> str:
    figures = summary.figures
    if figures.requests:
        return "" if figures.completed else f"Nothing completed: all {figures.requests} requests failed."
    return (
        f"No request was due in the measured window ({figures.start_s:g} to {figures.end_s:g} s): there is no figure."
    )


def _interrupted(summary: Summary) -> str:
    if not (summary.interrupted or summary.unsent):
        return ""
    left_out = f"; never sent and left out: {summary.unsent:,}" if summary.unsent else ""
    return f"Interrupted: the run was broken off; what was under way and did not end in time is a miss{left_out}."


def _degraded(summary: Summary) -> str:
    if not summary.degraded:
        return ""
    return f"Degraded: {summary.degraded}. Latencies hold that delay; those from the actual send stand beside them."


def _closed_loop(summary: Summary) -> str:
    if not summary.closed_loop:
        return ""
    return (
        "Closed loop: concurrency was capped, so a slow server was sent less. Latencies from the intended send hold "
        "the wait for a free place. Not a measure of capacity at a given rate."
    )


def _few(summary: Summary) -> str:
    """A percentile needs samples beyond it."""
    spreads = [spread for spread in summary.figures.latencies.values() if spread.n and spread.percentiles_s]
    if not spreads:
        return ""
    few = min(spreads, key=lambda one: one.n)
    highest = max(few.percentiles_s, key=float)
    if few.n * (100 - float(highest)) >= 100:
        return ""
    return f"Few samples: with {few.n} requests, p{highest} is little more than the maximum."
