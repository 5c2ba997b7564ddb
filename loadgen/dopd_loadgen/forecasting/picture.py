"""Forecast against what came, with its band. Consumes `Result`s; produces `Picture`s, one per horizon."""

from collections.abc import Sequence

import numpy as np

from dopd_forecaster.choose import LEVELS
from dopd_loadgen.forecasting.backtest import ONLINE, Result
from dopd_loadgen.report.canvas import COLOURS, INK, Picture, canvas, legend, style

SHOWN = ("requests_per_s", "tokens_per_s", "prefill_work", "decode_work")
UNITS = {
    "requests_per_s": "requests/s",
    "tokens_per_s": "tokens/s",
    "prefill_work": "prefill work (s/s)",
    "decode_work": "decode work (s/s)",
}


def pictures(results: Sequence[Result], bin_s: float, title: str) -> list[Picture]:
    """A sheet per horizon with the flows one below the other."""
    with style():
        drawn = []
        for horizon_s in sorted({one.horizon_s for one in results}):
            shown = [one for one in results if one.horizon_s == horizon_s and one.series in SHOWN and one.moments]
            if shown:
                drawn.append(_picture(shown, bin_s, horizon_s, title))
        return drawn


def _picture(results: Sequence[Result], bin_s: float, horizon_s: float, title: str) -> Picture:
    figure, panels = canvas(len(results), height_in=1.0 + 1.7 * len(results))
    for number, (axes, one) in enumerate(zip(panels, results, strict=True)):
        at = np.array([moment.first_bin * bin_s for moment in one.moments])
        bands = np.array([moment.quantiles for moment in one.moments])
        band, came, said = ("_",) * 3 if number else (f"{LEVELS[0]:.0%} to {LEVELS[-1]:.0%}", "what came", "forecast")
        axes.fill_between(
            at, bands[:, 0], bands[:, -1], step="post", color=COLOURS[5], alpha=0.35, linewidth=0,
            label=band,
        )  # fmt: skip
        axes.plot(at, [m.actual for m in one.moments], drawstyle="steps-post", color=INK, linewidth=1.0,
                  label=came)  # fmt: skip
        axes.plot(at, [m.point for m in one.moments], drawstyle="steps-post", color=COLOURS[1], linewidth=1.4,
                  label=said)  # fmt: skip
        axes.set_ylim(0, _top(one))
        axes.set_ylabel(UNITS.get(one.series, one.series))
        score = one.scores[ONLINE]
        axes.set_title(
            f"WAPE {score.wape:.1%}, {one.best()} {one.scores[one.best()].wape:.1%}", fontsize=9, loc="right"
        )
    panels[-1].set_xlabel(f"beginning of the horizon of {horizon_s:g} s (s from the start of the trace)")
    legend(figure)
    alt = f"What came in the next {horizon_s:g} s against the forecast made before, with the band of its quantiles."
    return Picture(f"forecast-{horizon_s:g}s", f"{title}: {horizon_s:g} s ahead", alt, figure)


def _top(one: Result) -> float:
    """So high that everything that came is seen; a band beyond twice that is cut."""
    came = max(moment.actual for moment in one.moments)
    bands = max(moment.quantiles[-1] for moment in one.moments)
    return 1.05 * (min(bands, 2 * came) or 1.0)
