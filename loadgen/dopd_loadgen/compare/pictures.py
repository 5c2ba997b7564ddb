"""Pictures of a comparison, per trace and profile. Consumes a `Comparison`; produces `Picture`s.

Attainment and goodput against rate, distributions of latency at the rate where policies differ most, and for each
policy its roles and queues over time there.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dopd_loadgen.compare.figures import Step, steps
from dopd_loadgen.compare.model import Row
from dopd_loadgen.compare.result import Comparison, Detail
from dopd_loadgen.compare.wording import BOUND, title
from dopd_loadgen.goodput import NO_TARGET_S
from dopd_loadgen.report.canvas import (
    COLOURS,
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
from dopd_loadgen.report.plots import latency_axis, role_steps

MARKS = "osD^vPX*"
BOUND_LOOK: dict[str, Any] = {"color": INK, "linewidth": 1.2, "linestyle": (0, (2, 2))}


def pictures(comparison: Comparison, trace: str, profile: str) -> list[Picture]:
    """All pictures of one ground that there is data for."""
    by_rate = steps(comparison, trace, profile)
    rows = [row for row in comparison.rows if (row.trace, row.profile) == (trace, profile)]
    details = [one for one in comparison.details if (one.trace, one.profile) == (trace, profile)]
    name = re.sub(r"[^\w.+-]+", "_", f"{trace}-{profile}")
    ground = title(trace, profile)
    with style():
        drawn: list[Picture | None] = []
        if len(by_rate) > 1:
            drawn += [
                _against_rate(comparison, rows, by_rate, which, name, ground) for which in ("attainment", "goodput")
            ]
        drawn += [_cdf(comparison, details, which, name, ground) for which in ("ttft", "tpot")]
        drawn += [_timeline(one, number, name) for number, one in enumerate(details, 1)]
    return [picture for picture in drawn if picture is not None]


def _against_rate(
    comparison: Comparison, rows: Sequence[Row], by_rate: Sequence[Step], which: str, name: str, ground: str
) -> Picture:
    """One line per policy with the spread of its seeds, and the bound."""
    share = which == "attainment"
    key, scale = ("attainment", 100.0) if share else ("goodput_rps", 1.0)
    figure, (axes,) = canvas(1, height_in=3.3)
    shaded = len({row.seed for row in rows}) > 1
    for number, policy in enumerate(comparison.config.policies):
        points = [(s, one) for s in by_rate for one in s.lines if one.policy == policy]
        if not points:
            continue
        x = [step.offered_rps for step, _ in points]
        look: dict[str, Any] = {"color": colour(number), "marker": MARKS[number % len(MARKS)], "markersize": 4.5}
        axes.plot(x, [(one.means[key] or 0) * scale for _, one in points], linestyle=line(number), label=policy, **look)
        seeds = [
            [getattr(row, key) for row in rows if (row.policy, row.rate_scale) == (policy, step.rate_scale)]
            for step, _ in points
        ]
        if shaded:
            low, high = ([end(values) * scale for values in seeds] for end in (min, max))
            axes.fill_between(x, low, high, color=colour(number), alpha=0.15, linewidth=0)
    bound = [(step.offered_rps, step.bound[key] * scale) for step in by_rate if step.bound is not None]
    if bound:
        axes.plot(*zip(*bound, strict=True), label=BOUND, **BOUND_LOOK)
    axes.set_xlabel("offered load (requests/s)")
    axes.set_xlim(left=0)
    axes.set_ylabel("attainment (%)" if share else "goodput (requests/s)")
    axes.set_ylim(0, 103 if share else None)
    legend(figure)
    said = "Attainment" if share else "Goodput"
    alt = f"{said} of each policy against the offered load, and the bound: {ground}."
    return Picture(
        f"{name}-{which}", f"{said} against rate" + (", with its spread over seeds" if shaded else ""), alt, figure
    )


def _cdf(
    comparison: Comparison, details: Sequence[Detail], which: Literal["ttft", "tpot"], name: str, ground: str
) -> Picture | None:
    """Share of all requests that had their latency by then; what failed never comes."""
    order = comparison.config.policies
    curves = [(one.policy, curve) for one in details if (curve := getattr(one, which)).values_s]
    if not curves:
        return None
    figure, (axes,) = canvas(1, height_in=3.3)
    low = min(curve.values_s[0] for _, curve in curves) * 1e3
    high = max(curve.values_s[-1] for _, curve in curves) * 1e3
    for policy, curve in curves:
        number = order.index(policy)
        values = np.array(curve.values_s) * 1e3
        shares = np.array(curve.shares) * 100
        x, y = np.r_[values[0], values, high], np.r_[0, shares, shares[-1]]
        axes.step(x, y, where="post", label=entry(policy), color=colour(number), linestyle=line(number))
    target_s = comparison.config.slo_ttft_s if which == "ttft" else comparison.config.slo_tpot_s
    if target_s < NO_TARGET_S:
        axes.axvline(target_s * 1e3, label=f"target {target_s * 1e3:,.6g} ms", **BOUND_LOOK)
    latency_axis(axes, low, high)
    axes.set_ylim(0, 103)
    label = which.upper()
    axes.set_xlabel(f"{label} (ms), from the intended send" if which == "ttft" else f"{label} (ms per token)")
    axes.set_ylabel("share of all requests (%)")
    legend(figure)
    rate = details[0].rate_scale
    alt = f"Cumulative distribution of {label} of each policy at rate {rate:g}: {ground}."
    return Picture(f"{name}-cdf-{which}", f"{label} at rate {rate:g}", alt, figure)


def _timeline(one: Detail, number: int, name: str) -> Picture:
    """Load and goodput, workers per role, and what waits and runs."""
    figure, (load, workers, prefill, decode) = canvas(4, height_in=6.2)
    _draw_load(load, one)
    _draw_roles(workers, one)
    times = [sample.at_s for sample in one.queues]
    prefill.plot(times, [s.prefill_tokens / 1e3 for s in one.queues], color=COLOURS[0], label="prompt tokens queued")
    prefill.set_ylabel("1000 tokens")
    _draw_requests(decode, times, one)
    for axes in (load, prefill, decode):
        axes.set_ylim(bottom=0)
    decode.set_xlim(0, one.span_s)
    decode.set_xlabel("time (s from the start)")
    figure.align_ylabels()
    legend(figure)
    alt = f"Load, workers per role, queued prompt tokens and decoding requests over time of {one.policy}."
    return Picture(f"{name}-timeline-{number}", f"{one.policy} over time at rate {one.rate_scale:g}", alt, figure)


def _draw_load(axes: Axes, one: Detail) -> None:
    if one.bins:
        edges = [one.bins[0][0], *(end_s for _, end_s, _, _ in one.bins)]
        offered, good = ([b[place] / (b[1] - b[0]) for b in one.bins] for place in (2, 3))
        axes.stairs(offered, edges, fill=True, color=SHADE, alpha=0.35, label="offered")
        axes.stairs(good, edges, baseline=None, color=COLOURS[2], linewidth=1.6, label="good")
    axes.set_ylabel("requests/s")


def _draw_roles(axes: Axes, one: Detail) -> None:
    if one.roles:
        counts, times = role_steps(one.roles, one.span_s)
        for number, role in enumerate(("n_prefill", "n_decode", "n_mixed")):
            values = [getattr(count, role) for count in counts]
            if any(values):
                label = f"{role.removeprefix('n_')} workers"
                look: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "linewidth": 1.8}
                axes.stairs(values, times, baseline=None, label=label, **look)
        axes.set_ylim(0, max(c.n_prefill + c.n_decode + c.n_mixed for c in counts) + 0.5)
    axes.set_ylabel("workers")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_requests(axes: Axes, times: Iterable[float], one: Detail) -> None:
    lines: tuple[tuple[str, int, Callable[..., float]], ...] = (
        ("decoding", 1, lambda sample: sample.decoding),
        ("waiting at the gateway", 3, lambda sample: sample.waiting),
    )
    for label, number, value in lines:
        axes.plot(
            list(times), [value(s) for s in one.queues], color=COLOURS[number], linestyle=LINES[number], label=label
        )
    axes.set_ylabel("requests")
