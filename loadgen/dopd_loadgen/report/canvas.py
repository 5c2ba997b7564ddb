"""What all pictures share: colours, type, sheet, legend, and how they are saved. Figures in, PNG and SVG out.

Okabe and Ito's colours, which colour-blind people tell apart, with a line style each for print. Text and axes are drawn
in one ink, which a page may replace to follow its light or dark scheme. Each picture fits a phone's width.
"""

import io
import math
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A800")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 3)))
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")
INK, GRID, SHADE = "#1a1b1c", "#d0d1d2", "#8a8b8c"
WIDTH_IN = 5.8
MOST_LABEL = 60
LINE_CHARS, MARK_CHARS, LEGEND_ROW_IN = 80, 7, 0.19
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a label may hold any sign
    "svg.fonttype": "none",
    "svg.hashsalt": "dopd",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """`name` is its file's, `alt` says in words what is drawn."""

    name: str
    title: str
    alt: str
    figure: Figure


def style() -> AbstractContextManager[None]:
    """Draw and save within it."""
    return matplotlib.rc_context(STYLE)


def png(picture: Picture) -> bytes:
    """For documents: 200 dpi on white."""
    return _saved(picture, "png", dpi=200, facecolor="white")


def svg(picture: Picture) -> bytes:
    """For documents: on white."""
    return _saved(picture, "svg", facecolor="white", metadata={"Date": None})


def inline_svg(picture: Picture) -> str:
    """For a page: transparent, in the page's ink (`currentColor`, `--grid`), with ids of its own."""
    text = _saved(picture, "svg", facecolor="none", metadata={"Date": None}).decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--grid)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", text)
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', text, count=1)


def _saved(picture: Picture, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    with style():
        picture.figure.savefig(out, format=form, **how)  # type: ignore[arg-type]  # passed on as they are
    return out.getvalue()


def canvas(panels: int, height_in: float | None = None) -> tuple[Figure, list[Axes]]:
    """A sheet with panels one below the other on one x axis."""
    height_in = height_in or (2.9 if panels == 1 else 4.1)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False)
    return figure, list(grid[:, 0])


def legend(figure: Figure) -> None:
    """Above the axes, where it hides nothing."""
    handles, labels = [], []
    for axes in figure.axes:
        more, names = axes.get_legend_handles_labels()
        handles += more
        labels += names
    widest = max(map(len, labels), default=0) + MARK_CHARS
    columns = min(len(labels), max(1, LINE_CHARS // widest))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_IN * math.ceil(len(labels) / columns))


def entry(label: str, most: int = MOST_LABEL) -> str:
    """A label from outside as one of the legend, where one with "_" in front would be hidden."""
    label = f" {label}" if label.startswith("_") else label
    return label if len(label) <= most else label[: most - 1] + "…"


def colour(number: int) -> str:
    """Of the series with this number."""
    return COLOURS[number % len(COLOURS)]


def line(number: int) -> str | tuple[int, tuple[int, ...]]:
    """The style of the series with this number."""
    return LINES[number % len(LINES)]
