"""The dashboards' panels drawn from Prometheus' answers, for the document: what Grafana would show, not how it looks.

Consumes a dashboard's JSON and a Prometheus; produces one PNG, of few colours so that it is small.
"""

import io
import json
import math
import re
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter
from PIL import Image

from tests.prometheus_rig import Prometheus, Series

WIDTH_IN, UNIT_IN, DPI, COLORS = 13.0, 0.26, 80, 96
MARGIN_X, MARGIN_TOP, MARGIN_BOTTOM = 0.045, 1.15, 2.2
"""Of the figure's width, and in grid units: room for numbers, title and legend."""
LETTERS, LEGEND_LINES = 9.5, 3
"""Of a legend in one of 24 columns, and how many lines it may have."""

SHADES = {"blue": "#3b6fb6", "green": "#4c9f5b", "purple": "#8259a8", "light-blue": "#9cc3ea", "yellow": "#d9b43b",
          "orange": "#dd8436", "red": "#c23b3b", "gray": "#8a8a8a"}  # fmt: skip


def draw(file: Path, prometheus: Prometheus, to: Path, interval: str, horizon: str, step_s: float) -> None:
    """One picture of the whole dashboard, over all that this Prometheus has seen."""
    page = json.loads(file.read_text())
    units = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in page["panels"]) + 1
    figure = plt.figure(figsize=(WIDTH_IN, units * UNIT_IN), dpi=DPI)
    figure.text(
        0.01, 1 - 0.3 / units, f"{page['title']}: drawn from Prometheus' answers, over minutes", va="top", fontsize=9
    )
    minutes = (time.time() - prometheus.began_s) / 60
    for panel in page["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 1) / units
        if panel["type"] == "row":
            figure.text(0.01, top - 0.5 / units, panel["title"], weight="bold", fontsize=10, va="center")
            continue
        left, width = place["x"] / 24 + MARGIN_X, place["w"] / 24 - MARGIN_X - 0.012
        bottom = top - (place["h"] - MARGIN_BOTTOM) / units
        axes = figure.add_axes((left, bottom, width, (place["h"] - MARGIN_TOP - MARGIN_BOTTOM) / units))
        axes.set_title(panel["title"], fontsize=8, loc="left", pad=3)
        axes.tick_params(labelsize=6.5, length=2)
        answers = []
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", interval)
            expr = expr.replace("${horizon}", horizon).replace("$horizon", horizon)
            answers.append((target["legendFormat"], prometheus.over(expr, step_s)))
        KINDS[panel["type"]](axes, panel, answers, prometheus.began_s)
        axes.set_xlim(0, minutes)
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    plt.close(figure)
    Image.open(raw).convert("RGB").quantize(COLORS, Image.Quantize.FASTOCTREE).save(to, optimize=True)


Answers = Sequence[tuple[str, list[Series]]]


def named(legend: str, labels: dict[str, str]) -> str:
    """Grafana's legend."""
    if legend == "__auto":
        return ""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).replace("127.0.0.1", "")


def told(value: float, unit: str) -> str:
    """A number in its unit."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    power = next((power for power in (2, 1) if abs(value) >= 1000**power), 0)
    return f"{value / 1000**power:.3g}{('', 'k', 'M')[power]}"


def lines(axes: Axes, panel: dict[str, Any], answers: Answers, began_s: float) -> None:
    """Over time; stacked, as bars, or with a band where the panel says so."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    found = [
        (named(text, labels), [(at - began_s) / 60 for at, _ in points], [value for _, value in points])
        for text, series in answers for labels, points in series
    ]  # fmt: skip
    band = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    shown = [one for one in found if one[0] not in band]
    edges = sorted((one for one in found if one[0] in band), key=lambda one: one[0])
    if len(edges) == 2:
        low, high = (dict(zip(edge[1], edge[2], strict=True)) for edge in edges)
        at = sorted(low.keys() & high.keys())
        axes.fill_between(at, [low[x] for x in at], [high[x] for x in at], alpha=0.25, lw=0, label="8 of 10")
    if custom["stacking"]["mode"] == "normal":
        at = sorted({x for _, xs, _ in shown for x in xs})
        rows = [[dict(zip(xs, ys, strict=True)).get(x, 0.0) for x in at] for _, xs, ys in shown]
        rows = [[y if math.isfinite(y) else 0.0 for y in row] for row in rows]
        if at:
            step = "mid" if custom["drawStyle"] == "bars" else None
            axes.stackplot(
                at,
                rows,
                labels=[name if any(ys) else "" for (name, _, _), ys in zip(shown, rows, strict=True)],
                step=step,
                alpha=0.8,
            )  # type: ignore[arg-type]
    else:
        for name, xs, ys in shown:
            axes.plot(xs, ys, lw=1.0, label=name)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, defaults["unit"])))
    axes.set_ylim(defaults.get("min"), 1.03 if defaults.get("max") == 1 else defaults.get("max"))
    axes.grid(lw=0.3)
    axes.set_ylabel(custom["axisLabel"], fontsize=6.5)
    legend(axes, panel["gridPos"]["w"])


def legend(axes: Axes, width: int) -> None:
    """Below, as far as there is room; without those that are 0 all the time in a stack."""
    handles, labels = axes.get_legend_handles_labels()
    shown = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    if not shown:
        return
    columns = max(1, int(width * LETTERS / (max(len(label) for _, label in shown) + 6)))
    shown = shown[: columns * LEGEND_LINES]
    axes.legend([handle for handle, _ in shown], [label for _, label in shown], fontsize=6, ncols=columns,
                loc="upper left", bbox_to_anchor=(-0.02, -0.1), frameon=False, handlelength=1.0,
                columnspacing=0.9, labelspacing=0.3)  # fmt: skip


def number(axes: Axes, panel: dict[str, Any], answers: Answers, began_s: float) -> None:
    """The last one."""
    axes.set_axis_off()
    points = [point for _, series in answers for _, each in series for point in each if math.isfinite(point[1])]
    text = told(max(points)[1], panel["fieldConfig"]["defaults"]["unit"]) if points else "-"
    axes.text(0.0, 0.35, text, fontsize=17, va="center", transform=axes.transAxes)


def timeline(axes: Axes, panel: dict[str, Any], answers: Answers, began_s: float) -> None:
    """A bar per series, coloured by its value."""
    mappings = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    rows = sorted((named(legend, labels), points) for legend, series in answers for labels, points in series)
    for row, (_, points) in enumerate(rows):
        step_s = min((b - a for (a, _), (b, _) in pairwise(points)), default=5.0)
        for at, value in points:
            meaning = mappings[str(int(value))]
            axes.barh(row, step_s / 60, left=(at - began_s) / 60, color=SHADES[meaning["color"]], height=0.7)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    there = {str(int(value)) for _, points in rows for _, value in points}
    for key in sorted(there):
        axes.plot([], [], lw=6, color=SHADES[mappings[key]["color"]], label=mappings[key]["text"])
    axes.legend(fontsize=6, ncols=6, loc="upper left", bbox_to_anchor=(-0.01, -0.1), frameon=False)


def heat(axes: Axes, panel: dict[str, Any], answers: Answers, began_s: float) -> None:
    """Buckets, of which Prometheus tells how many are in one or below it."""
    series = [(float(labels["le"]), dict(points)) for _, found in answers for labels, points in found]
    series = sorted(one for one in series if math.isfinite(one[0]))
    at = sorted({x for _, points in series for x in points})
    below = [[0.0] * len(at)] + [[max(0.0, points.get(x, 0.0)) for x in at] for _, points in series]
    counts = [[max(0.0, b - a) for a, b in zip(low, high, strict=True)] for low, high in pairwise(below)]
    if at and any(map(any, counts)):
        axes.pcolormesh([(x - began_s) / 60 for x in at], range(len(series)), counts, cmap="Blues", shading="nearest",
                        norm=LogNorm(vmin=0.5))  # fmt: skip
    names = [told(edge, panel["fieldConfig"]["defaults"]["unit"]) for edge, _ in series]
    axes.set_yticks(range(0, len(series), 2), names[::2])


def table(axes: Axes, panel: dict[str, Any], answers: Answers, began_s: float) -> None:
    """A line per series."""
    axes.set_axis_off()
    rows = sorted({f"{one.get('job', ''):16}{one.get('service', ''):16}{one.get('version', '')}"
                   for _, series in answers for one, _ in series})  # fmt: skip
    axes.text(0.0, 1.0, "\n".join(rows), fontsize=6.5, va="top", family="monospace", transform=axes.transAxes)


KINDS = {"timeseries": lines, "stat": number, "state-timeline": timeline, "heatmap": heat, "table": table}
