"""Figures of a back-test as rows. Consumes `Result`s; produces table cells, and what a JSON file holds."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dopd_forecaster.choose import LEVELS
from dopd_loadgen.forecasting.backtest import ONLINE, Result, Score

MEAN_TARGET, WORST_TARGET = 1.05, 1.15
"""The online choice against the best fixed model: in the mean, and on the worst series."""


def wape_header(results: Sequence[Result]) -> list[str]:
    """Of `wape_rows`."""
    return ["series", "horizon (s)", "n", "floor", *_models(results), "best", "× best", "mostly"]


def wape_rows(results: Sequence[Result]) -> list[list[str]]:
    """One row per series and horizon: WAPE in % of every model."""
    rows = []
    for one in results:
        found = [one.scores.get(model, Score()) for model in _models(results)]
        if not found[0].n or math.isnan(found[0].wape):
            rows.append([one.series, f"{one.horizon_s:g}", str(found[0].n), *["–"] * (len(found) + 4)])
            continue
        mostly = one.chosen.most_common(1)[0][0]
        cells = [_percent(score.wape) for score in found]
        rows.append([one.series, f"{one.horizon_s:g}", str(found[0].n), _percent(one.floor), *cells, one.best(),
                     f"{one.ratio():.2f}" if math.isfinite(one.ratio()) else "–", mostly])  # fmt: skip
    return rows


def spread_header() -> list[str]:
    """Of `spread_rows`."""
    covered = [f"came below {level:.0%}" for level in LEVELS]
    return ["series", "horizon (s)", "MASE", "MASE of the best", "pinball (%)", "pinball of the best (%)", *covered]


def spread_rows(results: Sequence[Result]) -> list[list[str]]:
    """MASE, pinball loss in % of what came, and how often what came lay below each quantile (online)."""
    rows = []
    for one in results:
        online, best = one.scores[ONLINE], one.scores[one.best()]
        if not online.n or math.isnan(online.wape):
            continue
        figures = (_number(online.mase), _number(best.mase), _percent(online.pinball), _percent(best.pinball))
        covered = [f"{share:.0%}" for share in online.covered]
        rows.append([one.series, f"{one.horizon_s:g}", *figures, *covered])
    return rows


def verdict(results: Sequence[Result]) -> str:
    """The online choice against the best fixed model over all rows, in words."""
    ratios = [(one.ratio(), f"{one.series} at {one.horizon_s:g} s") for one in results if math.isfinite(one.ratio())]
    if not ratios:
        return "nothing came that could be scored"
    worst, where = max(ratios)
    mean = sum(ratio for ratio, _ in ratios) / len(ratios)
    above = sum(ratio > WORST_TARGET for ratio, _ in ratios)
    return (
        f"online choice over the best fixed model in hindsight: mean × {mean:.3f} (aim {MEAN_TARGET}), worst "
        f"× {worst:.2f} ({where}), {above} of {len(ratios)} above × {WORST_TARGET}"
    )


def as_json(results: Sequence[Result], about: dict[str, Any]) -> dict[str, Any]:
    """Everything but the single forecasts; NaN becomes null."""
    rows = [
        {"series": one.series, "horizon_s": one.horizon_s, "poisson_floor": one.floor, "best": one.best(),
         "ratio": one.ratio(), "chosen": dict(one.chosen),
         "models": {model: asdict(score) for model, score in one.scores.items()}}
        for one in results
    ]  # fmt: skip
    found: dict[str, Any] = _plain({**about, "quantile_levels": LEVELS, "results": rows})
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _models(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(model for one in results for model in one.scores))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"
