"""The figures of one run as rows of text, for the terminal and the page alike. Consumes a `Summary`. Pure."""

import math

from dopd_loadgen.breakdown import PhaseStats
from dopd_loadgen.goodput import NO_TARGET_S
from dopd_loadgen.report.summary import Figures, Spread, Summary

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}
PART_HEADER = ("part", "n", "mean", "p50", "p90", "p99")
PHASE_HEADER = ("phase", "requests", "attained", "TTFT", "TPOT", "offered/s", "good/s")


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """Title and text of every figure that is not a latency."""
    figures, share = summary.figures, summary.figures.attainment
    each = [("TTFT", share.ttft), ("TPOT", share.tpot), *([("E2E", share.e2el)] if share.e2el is not None else [])]
    attained = f"{percent(share.joint)} ({figures.good:,} of {figures.requests:,})"
    failed = ", ".join(f"{kind} {n:,}" for kind, n in figures.failures.items()) or "none"
    lag = summary.lag
    rows = [
        ("Goodput", f"{figures.goodput_rps:,.2f} req/s, {figures.goodput_tps:,.1f} tok/s"),
        ("Goodput per GPU", _per_gpu(summary)),
        ("Attainment", attained + "; " + ", ".join(f"{name} {percent(value)}" for name, value in each)),
        ("Targets", targets(summary)),
        ("Failures", f"{failed}; missing tokens {figures.missing_tokens:,}"),
        ("Requests", f"offered {figures.offered_rps:,.2f} req/s, completed {figures.completed_rps:,.2f} req/s"),
        ("Tokens", f"input {figures.input_tps:,.1f} tok/s, output {figures.output_tps:,.1f} tok/s"),
        ("From actual send", f"attainment {percent(summary.figures.attainment_from_send.joint)}"),
        ("Schedule lag", f"p50 {ms(lag.p50_s)}, p90 {ms(lag.p90_s)}, p99 {ms(lag.p99_s)} ms" if lag else "-"),
        ("Window", f"{figures.start_s:,.5g} to {figures.end_s:,.5g} s; {summary.outside:,} requests outside it"),
    ]
    return rows


def _per_gpu(summary: Summary) -> str:
    if summary.goodput_rps_per_gpu is None or summary.goodput_tps_per_gpu is None:
        return "-"
    rates = f"{summary.goodput_rps_per_gpu:,.3f} req/s, {summary.goodput_tps_per_gpu:,.1f} tok/s"
    return f"{rates} ({summary.gpus:,.4g} GPUs)"


def latency_rows(figures: Figures) -> list[tuple[str, Spread]]:
    """Title and spread, each latency from the intended send followed by the one from the actual send."""
    rows = []
    for key, spread in figures.latencies.items():
        rows.append((NAMES[key], spread))
        if key in figures.latencies_from_send:
            rows.append((f"{NAMES[key]} from send", figures.latencies_from_send[key]))
    return rows


def latency_header(figures: Figures) -> list[str]:
    """Column titles that go with `latency_cells`."""
    spreads = figures.latencies.values()
    names = max((list(spread.percentiles_s) for spread in spreads), key=len, default=[])
    return ["", "n", "mean", *(f"p{name}" for name in names)]


def latency_cells(title: str, spread: Spread, columns: int) -> list[str]:
    """One row; latencies in ms."""
    values = [spread.mean_s, *spread.percentiles_s.values()]
    cells = [title, f"{spread.n:,}", *(ms(value) for value in values)]
    return cells + ["-"] * (columns - len(cells))


def latency_caption(figures: Figures) -> str:
    """Over what the latencies are, and how many requests are not in them."""
    missing = figures.requests - figures.completed
    return (
        f"Latencies are over the {figures.completed:,} completed requests; {missing:,} of {figures.requests:,} are "
        "missing from them. n counts samples: a request each, for ITL a gap each."
    )


def targets(summary: Summary) -> str:
    """The SLO in words."""
    named = [("TTFT", summary.slo_ttft_s), ("TPOT", summary.slo_tpot_s), ("E2E", summary.slo_e2e_s)]
    said = [f"{name} ≤ {value * 1e3:,.6g} ms" for name, value in named if value is not None and value < NO_TARGET_S]
    return ", ".join(said) or "none: every completed request counts"


def percent(share: float | None) -> str:
    """Cut, not rounded: 100 % is said of all alone."""
    return "-" if share is None else f"{cut_percent(share):.2f} %"


def cut_percent(share: float) -> float:
    """Down to a hundredth; the summand keeps 0.07 from being 6.99."""
    return math.floor(share * 10_000 + 1e-6) / 100


def ms(value_s: float | None) -> str:
    """Milliseconds with four digits or so."""
    if value_s is None:
        return "-"
    value = value_s * 1e3
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.2f}"


def phase_cells(name: str, figures: Figures) -> list[str]:
    """One row of the table of phases."""
    share = figures.attainment
    shares = [percent(share.joint), percent(share.ttft), percent(share.tpot)]
    rates = [f"{figures.offered_rps:,.2f}", f"{figures.goodput_rps:,.2f}"]
    return [name or "(none)", f"{figures.requests:,}", *shares, *rates]


def part_cells(name: str, stats: PhaseStats) -> list[str]:
    """One row of the table of what the waits are made of; ms."""
    return [name, f"{stats.count:,}", *map(ms, (stats.mean_s, stats.p50_s, stats.p90_s, stats.p99_s))]
