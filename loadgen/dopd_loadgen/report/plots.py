"""Pictures of results. Consumes `Stored`s; produces `Picture`s, each only if its data is there."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dopd_loadgen.goodput import NO_TARGET_S
from dopd_loadgen.model import RoleCount, Run
from dopd_loadgen.report.canvas import (
    COLOURS,
    HATCHES,
    INK,
    LINES,
    SHADE,
    Picture,
    canvas,
    colour,
    entry,
    legend,
    line,
    style,
)
from dopd_loadgen.report.comparison import names
from dopd_loadgen.report.metrics import window
from dopd_loadgen.report.result import Stored
from dopd_loadgen.report.samples import parts_s, samples
from dopd_loadgen.report.summary import Summary

MOST_POINTS = 400


def pictures(stored: Sequence[Stored]) -> list[Picture]:
    """Every picture that these results have the data for."""
    with style():
        drawn = [goodput_against_rate(stored), _cdf(stored, "ttft"), _cdf(stored, "tpot")]
        for number, (name, one) in enumerate(zip(names(stored), stored, strict=True), 1):
            suffix, title = (f"-{number}", f": {name}") if len(stored) > 1 else ("", "")
            drawn += [over_time(one, suffix, title), roles(one, suffix, title)]
        drawn += [breakdown(stored, "ttft"), breakdown(stored, "second")]
    return [picture for picture in drawn if picture is not None]


def _cdf(stored: Sequence[Stored], metric: Literal["ttft", "tpot"]) -> Picture | None:
    """Share of all requests that had their latency by then: what failed never comes, so a curve ends below 100 %."""
    curves = [
        (name, made) for name, one in zip(names(stored), stored, strict=True) if (made := samples(one, metric)).values_s
    ]
    if not curves:
        return None
    figure, (axes,) = canvas(1)
    ends = [(min(made.values_s), max(made.values_s)) for _, made in curves]
    low, high = min(low for low, _ in ends) * 1e3, max(high for _, high in ends) * 1e3
    target_s = _target_s(stored, metric)
    for number, (label, made) in enumerate(curves):
        values = np.sort(made.values_s) * 1e3
        places = np.unique(np.linspace(0, len(values) - 1, MOST_POINTS).astype(int))
        shares = (places + 1) / made.requests * 100
        x, y = np.r_[values[places[0]], values[places], high], np.r_[0, shares, shares[-1]]
        axes.step(x, y, where="post", label=entry(label), color=colour(number), linestyle=line(number))
    if target_s is not None:
        axes.axvline(
            target_s * 1e3, color=INK, linewidth=1.2, linestyle=(0, (2, 2)), label=f"target {target_s * 1e3:,.6g} ms"
        )
    latency_axis(axes, low, high)
    axes.set_ylim(0, 103)
    name = metric.upper()
    axes.set_xlabel(f"{name} (ms), from the intended send" if metric == "ttft" else f"{name} (ms per token)")
    axes.set_ylabel("share of all requests (%)")
    legend(figure)
    alt = f"Cumulative distribution of {name} over all requests of {len(curves)} result(s)."
    return Picture(f"cdf-{metric}", f"{name}: how many requests had it by when", alt, figure)


def latency_axis(axes: Axes, low: float, high: float) -> None:
    """The x axis for values from `low` to `high`: logarithmic where they lie far apart."""
    if low > 0 and high / low > 30:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)


def over_time(stored: Stored, suffix: str = "", title: str = "") -> Picture | None:
    """Offered load, goodput and attainment by the time a request was due."""
    if stored.run is None or stored.summary is None or not any(one.requests for one in stored.summary.bins):
        return None
    figure, (load, share) = canvas(2)
    edges, offered = _offered(stored.summary)
    bins = stored.summary.bins
    good = [one.good / (one.end_s - one.start_s) for one in bins]
    attained = [one.good / one.requests * 100 if one.requests else np.nan for one in bins]
    load.stairs(offered, edges, fill=True, color=SHADE, alpha=0.35, label="offered")
    load.stairs(good, edges, baseline=None, color=COLOURS[0], linewidth=1.8, label="goodput")
    load.set_ylabel("requests/s")
    load.set_ylim(bottom=0)
    share.stairs(attained, edges, baseline=None, color=COLOURS[2], linewidth=1.8, label="attainment")
    share.set_ylabel("attainment (%)")
    share.set_ylim(0, 103)
    _shade(load, stored.run, "not measured")
    _shade(share, stored.run, None)
    share.set_xlim(0, stored.run.span_s)
    share.set_xlabel("intended send (s from the start)")
    legend(figure)
    alt = "Offered load and goodput in requests per second, and attainment, over the time of the schedule."
    return Picture(f"over-time{suffix}", f"Attainment and load over time{title}", alt, figure)


def roles(stored: Stored, suffix: str = "", title: str = "") -> Picture | None:
    """Workers per role against the offered load."""
    if stored.run is None or stored.summary is None or not stored.run.roles or not stored.summary.bins:
        return None
    figure, (load, workers) = canvas(2)
    edges, offered = _offered(stored.summary)
    load.stairs(offered, edges, fill=True, color=SHADE, alpha=0.35, label="offered load")
    load.set_ylabel("requests/s")
    load.set_ylim(bottom=0)
    steps, times = role_steps(stored.run.roles, stored.run.span_s)
    for number, name in enumerate(("n_prefill", "n_decode", "n_mixed")):
        counts = [getattr(one, name) for one in steps]
        if name != "n_mixed" or any(counts):
            label = name.removeprefix("n_") + " workers"
            workers.stairs(
                counts, times, baseline=None, color=COLOURS[number], linestyle=LINES[number], linewidth=1.8, label=label
            )
    workers.set_ylabel("workers")
    workers.set_ylim(0, max(one.n_prefill + one.n_decode + one.n_mixed for one in steps) + 0.5)
    workers.yaxis.set_major_locator(MaxNLocator(integer=True))
    workers.set_xlim(0, stored.run.span_s)
    workers.set_xlabel("time (s from the start)")
    legend(figure)
    alt = "Number of prefill and decode workers over time, above it the offered load in requests per second."
    return Picture(f"roles{suffix}", f"Workers per role{title}", alt, figure)


def goodput_against_rate(stored: Sequence[Stored]) -> Picture | None:
    """One line per label through its runs by offered rate; needs two runs."""
    series: dict[str, list[Summary]] = {}
    for one in stored:
        if one.summary is not None and one.summary.figures.requests:
            series.setdefault(one.label, []).append(one.summary)
    if sum(map(len, series.values())) < 2:
        return None
    figure, (good, share) = canvas(2)
    most = max(one.figures.offered_rps for part in series.values() for one in part)
    good.plot([0, most], [0, most], color=INK, linewidth=1, linestyle=(0, (2, 2)), label="all offered")
    for number, (label, part) in enumerate(series.items()):
        part = sorted(part, key=lambda one: one.figures.offered_rps)
        rates = [one.figures.offered_rps for one in part]
        look: dict[str, Any] = {"color": colour(number), "marker": "osD^vPX*"[number % 8], "markersize": 5}
        dashes = line(number)
        good.plot(rates, [one.figures.goodput_rps for one in part], linestyle=dashes, label=entry(label), **look)
        share.plot(rates, [(one.figures.attainment.joint or 0) * 100 for one in part], linestyle=dashes, **look)
    good.set_ylabel("goodput (requests/s)")
    good.set_ylim(bottom=0)
    share.set_ylabel("attainment (%)")
    share.set_ylim(0, 103)
    share.set_xlabel("offered load (requests/s)")
    share.set_xlim(left=0)
    legend(figure)
    alt = "Goodput and attainment against the offered load in requests per second."
    return Picture("goodput-rate", "Goodput against rate", alt, figure)


def breakdown(stored: Sequence[Stored], of: Literal["ttft", "second"]) -> Picture | None:
    """Where the time to the first token goes, or to the second: one stacked bar of means per result."""
    bars = {name: parts for name, one in zip(names(stored), stored, strict=True) if (parts := parts_s(one, of))}
    if not bars:
        return None
    figure, (axes,) = canvas(1, height_in=0.8 + 0.45 * len(bars))
    phases = list(dict.fromkeys(phase for parts in bars.values() for phase in parts))
    longest = max(sum(parts.values()) for parts in bars.values()) * 1e3
    starts = np.zeros(len(bars))
    for number, phase in enumerate(phases):
        widths = np.array([parts.get(phase, 0.0) * 1e3 for parts in bars.values()])
        look: dict[str, Any] = {"color": colour(number), "edgecolor": "white", "hatch": HATCHES[number % len(HATCHES)]}
        axes.barh(range(len(bars)), widths, left=starts, height=0.6, label=entry(phase), **look)
        for row, width in enumerate(widths):
            if width > 0.12 * longest:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
                middle = starts[row] + width / 2
                axes.text(middle, row, f"{width:,.3g}", ha="center", va="center", fontsize=9, color="black", bbox=box)
        starts += widths
    axes.set_yticks(range(len(bars)), [entry(label, 24) for label in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    first = of == "ttft"
    what = "time to the first token" if first else "wait for the second token"
    axes.set_xlabel(f"mean {what} (ms)")
    legend(figure)
    alt = f"Stacked bars: mean milliseconds of the {what} per part."
    return Picture("ttft-breakdown" if first else "second-token-breakdown", f"Where the {what} goes", alt, figure)


def _offered(summary: Summary) -> tuple[list[float], list[float]]:
    """Edges of the bins, and requests per second due in each."""
    bins = summary.bins
    edges = [bins[0].start_s, *(one.end_s for one in bins)]
    return edges, [one.requests / (one.end_s - one.start_s) for one in bins]


def role_steps(counts: Sequence[RoleCount], span_s: float) -> tuple[list[RoleCount], list[float]]:
    """What held from which time on within the schedule; the last of equal times wins."""
    last_by_time = {max(0.0, one.at_s): one for one in sorted(counts, key=lambda one: one.at_s) if one.at_s < span_s}
    times = [*last_by_time, span_s]
    return list(last_by_time.values()), times if all(a < b for a, b in pairwise(times)) else sorted(set(times))


def _shade(axes: Axes, run: Run, label: str | None) -> None:
    """Warm-up and cool-down."""
    start_s, end_s = window(run)
    for first_s, last_s in ((0.0, start_s), (end_s, run.span_s)):
        if last_s > first_s:
            axes.axvspan(
                first_s, last_s, facecolor="none", edgecolor=SHADE, hatch="////", linewidth=0, alpha=0.8, label=label
            )
            label = None


def _target_s(stored: Sequence[Stored], metric: Literal["ttft", "tpot"]) -> float | None:
    """The target, if these results have one and the same."""
    summaries = [one.summary for one in stored if one.summary is not None]
    found = {one.slo_ttft_s if metric == "ttft" else one.slo_tpot_s for one in summaries}
    target_s = found.pop() if len(found) == 1 else NO_TARGET_S
    return target_s if target_s < NO_TARGET_S else None
