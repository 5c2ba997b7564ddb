"""A picture of a load: arrivals and tokens over time, and how long prompts and answers are.

Consumes planned requests; produces a PNG or SVG file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_loadgen.model import Planned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS, _FEW_BINS = 240, 80
_INPUT, _OUTPUT, _ARRIVALS = "#1f5fa8", "#d9730d", "#444444"
_WIDTHS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


def plot(title: str, planned: Sequence[Planned], span_s: float, out: Path) -> None:
    """Draws the four parts into `out`. Raises LoadError when it cannot be written."""
    if out.suffix not in (".png", ".svg"):
        raise LoadError(str(out), "a picture is a .png or a .svg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(f"{Path(title).name}: {len(planned):,} requests", fontsize=13)
    (rate, histogram), (load, curve) = figure.subplots(2, 2)
    isl, osl = (np.array([getattr(one, name) for one in planned], float) for name in ("isl_tokens", "osl_tokens"))
    at_s = np.array([one.at_s for one in planned])
    load.sharex(rate)
    _draw_rate(rate, at_s, bin_width_s(span_s, _BINS), span_s)
    # Two jagged lines on each other are not read: wider bins.
    _draw_load(load, at_s, isl, osl, bin_width_s(span_s, _FEW_BINS), span_s)
    _draw_histogram(histogram, isl, osl)
    _draw_curve(curve, isl, osl)
    try:
        figure.savefig(out, dpi=130)
    except OSError as error:
        raise LoadError(str(out), f"cannot be written: {error.strerror or error}") from error


def bin_width_s(span_s: float, bins: int) -> float:
    """The least of some round widths that gives no more than so many bins."""
    return next((width_s for width_s in _WIDTHS_S if span_s <= bins * width_s), span_s / bins)


def _draw_rate(axes: "Axes", at_s: NDArray[np.float64], bin_s: float, span_s: float) -> None:
    per, unit = _time_unit(span_s)
    starts_s, counts = _per_bin(at_s, np.ones(len(at_s)), bin_s, span_s)
    axes.stairs(counts, starts_s / per, fill=True, color=_ARRIVALS, alpha=0.25)
    axes.stairs(counts, starts_s / per, color=_ARRIVALS, linewidth=0.8)
    axes.axhline(
        len(at_s) / max(span_s, bin_s),
        color=_ARRIVALS,
        linestyle="--",
        linewidth=1,
        label=f"mean {len(at_s) / max(span_s, bin_s):.3g}",
    )
    axes.set(xlabel=f"time ({unit})", ylabel="requests/s")
    axes.set_ylim(bottom=0)
    _head(axes, f"Arrivals in {_width(bin_s)}")


def _draw_load(
    axes: "Axes", at_s: NDArray[np.float64], isl: NDArray[np.float64], osl: NDArray[np.float64], bin_s: float,
    span_s: float,
) -> None:  # fmt: skip
    per, unit = _time_unit(span_s)
    right = axes.twinx()
    for side, name, weights, colour in (
        (axes, "input, for prefill", isl, _INPUT), (right, "output, for decode", osl, _OUTPUT)
    ):  # fmt: skip
        starts_s, tokens = _per_bin(at_s, weights, bin_s, span_s)
        side.stairs(tokens, starts_s / per, color=colour, linewidth=1.1)
        if side is axes:
            # The other's line must not hide it where both burst.
            side.stairs(tokens, starts_s / per, color=colour, fill=True, alpha=0.25)
        side.set_ylabel(f"{name} (tokens/s)", color=colour)
        side.tick_params(axis="y", labelcolor=colour)
        side.yaxis.set_major_formatter(lambda value, _: _short(value))
        side.set_ylim(bottom=0)
    axes.set_xlabel(f"time ({unit})")
    axes.set_title(f"Tokens that arrive in {_width(bin_s)}", loc="left")


def _draw_histogram(axes: "Axes", isl: NDArray[np.float64], osl: NDArray[np.float64]) -> None:
    most = max(isl.max(), osl.max())
    edges: list[float] = np.geomspace(1, most * 1.05 + 1, 60).tolist()
    for tokens, name, colour in ((isl, "input", _INPUT), (osl, "output", _OUTPUT)):
        axes.hist(
            tokens, edges, weights=np.full(len(tokens), 100 / len(tokens)), color=colour, alpha=0.5,
            label=f"{name}, mean {tokens.mean():,.0f}",
        )  # fmt: skip
    axes.set_ylabel("requests (%)")
    _token_axis(axes)
    _head(axes, "Lengths")


def _draw_curve(axes: "Axes", isl: NDArray[np.float64], osl: NDArray[np.float64]) -> None:
    for tokens, name, colour in ((isl, "input", _INPUT), (osl, "output", _OUTPUT)):
        p50, p99 = np.quantile(tokens, [0.5, 0.99])
        label = f"{name}, p50 {p50:,.0f}, p99 {p99:,.0f}"
        axes.ecdf(tokens, color=colour, label=label)
    axes.set_ylabel("share of requests not longer")
    axes.grid(alpha=0.3)
    _token_axis(axes)
    _head(axes, "")


def _token_axis(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_xlabel("length (tokens, logarithmic)")
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))


def _head(axes: "Axes", title: str) -> None:
    """The title, and beside it what the colours are: inside, the legend would lie on the data."""
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, borderaxespad=0.0)


def _per_bin(
    at_s: NDArray[np.float64], weights: NDArray[np.float64], bin_s: float, span_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the bins, and the weights that arrive per second in each; the last bin may be cut by the span."""
    bins = max(1, int(np.ceil(max(span_s, float(at_s[-1])) / bin_s)))
    edges_s = np.append(np.arange(bins) * bin_s, max(span_s, (bins - 1) * bin_s + 1e-9) if bins > 1 else bin_s)
    which = np.minimum((at_s / bin_s).astype(int), bins - 1)
    sums = np.bincount(which, weights, bins)
    # A sliver of a bin at the end would show as a peak.
    widths_s = np.maximum(np.diff(edges_s), bin_s / 2)
    return edges_s, sums / widths_s


def _time_unit(span_s: float) -> tuple[float, str]:
    """How many seconds one unit of the time axis has, and its name."""
    return (3600.0, "hours") if span_s > 4 * 3600 else (60.0, "minutes") if span_s > 300 else (1.0, "seconds")


def _width(bin_s: float) -> str:
    return f"{bin_s / 60:g} min" if bin_s >= 60 else f"{bin_s:g} s"


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
