"""Fits the presets to the real traces: python -m dopd_loadgen.workload.fit DATA_DIR > presets.toml

Consumes the folder with the trace files; prints coefficients as TOML, each preset with what the trace shows, what
the preset generates (mean of several seeds, each as long as the trace) and the difference in percent. No chance but
the stated seeds, so it prints the same again.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import source
from dopd_loadgen.workload.arrivals import at_rest
from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.figures import (
    compared,
    correlation,
    counts_of,
    figures_of,
    minute_figures,
    tokens_per_minute,
)
from dopd_loadgen.workload.hmm import fitted
from dopd_loadgen.workload.presets import load_of
from dopd_loadgen.workload.read import csv_rows, read_trace, real
from dopd_loadgen.workload.servegen import read_servegen
from dopd_loadgen.workload.write_toml import rounded, written

Array = NDArray[np.float64]
Table = dict[str, Any]
SEEDS = range(10)
# Dense where a straight line between two quantiles would be far from the curve.
SHARES = (
    0, 0.005, 0.01, 0.025, 0.05, *(n / 20 for n in range(2, 19)), 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985,
    0.99, 0.993, 0.995, 0.997, 0.998, 0.999, 0.9995, 1,
)  # fmt: skip
# algorithms.md 1.12: "27 % <= 50, 37.5 % <= 100, 66 % <= 500, 100 % <= 1000"; the least length is an assumption.
BURSTGPT_ISL = ((0, 0.27, 0.375, 0.66, 1), (4, 50, 100, 500, 1000))
BURSTGPT_OSL = ((0, 0.20, 0.32, 0.87, 0.976, 1), (4, 50, 100, 500, 1000, 2000))
SHIFT_GPUS = 4.0
SHIFT_PARTS = ("azure-code-like", "azure-conv-like", "reasoning-like")


_HEAD = """\
# Written by `python -m dopd_loadgen.workload.fit DATA_DIR > presets.toml`; see docs/workloads.md.
#
# Fitted to: Azure LLM inference traces 2023 (Patel et al., Splitwise, ISCA 2024; CC-BY-4.0), the Mooncake conversation
# trace (Qin et al., FAST 2025; Apache-2.0), BurstGPT (Wang et al., KDD 2025; CC-BY-4.0) and ServeGen (Alibaba,
# arXiv 2505.09999; Apache-2.0), the first two thirds of each in time."""


def main(argv: Sequence[str]) -> int:
    """Prints presets.toml. Returns 2 when the folder cannot be used."""
    if len(argv) != 1:
        print("usage: python -m dopd_loadgen.workload.fit DATA_DIR", file=sys.stderr)
        return 2
    try:
        tables = {name: fit(Path(argv[0])) for name, fit in FITS.items()}
    except LoadError as error:
        print(error, file=sys.stderr)
        return 2
    print(_HEAD)
    print("\n".join(written(rounded({"presets": tables, "shift": shift_of(tables)}))))
    return 0


# ------------------------------------------------------------------------------------------------------------- presets


def azure_code(folder: Path) -> Table:
    """On/off bursts: levels of a rate that may change every second."""
    path = folder / "azure_llm_2023_code.csv.gz"
    planned = read_trace(path).planned
    span_s = planned[-1].at_s
    counts = counts_of(planned, 1.0, span_s)
    return _best(
        _fitted_to(path, planned),
        [_markov(counts, 6, 1.0, burstiness) for burstiness in (1.0, 0.85, 0.7, 0.5, 0.35)],
        figures_of(planned, span_s), span_s, ("dispersion_1s", "gap_cv"),
    )  # fmt: skip


def azure_conv(folder: Path) -> Table:
    """A rate that drifts."""
    path = folder / "azure_llm_2023_conv.csv.gz"
    planned = read_trace(path).planned
    span_s = planned[-1].at_s
    return _best(
        _fitted_to(path, planned), _wanderings(len(planned) / span_s, (1.0, 0.9, 0.8)),
        figures_of(planned, span_s), span_s,
        ("dispersion_1s", "dispersion_10s", "dispersion_60s", "peak_to_mean", "gap_cv"),
    )  # fmt: skip


def mooncake(folder: Path) -> Table:
    """A rate that drifts, above the recorder's 3 s; prompts that go on from earlier ones."""
    path = folder / "mooncake_conversation_trace.jsonl.gz"
    planned = read_trace(path).planned
    span_s = planned[-1].at_s
    figures = figures_of(planned, span_s)
    # Arrivals are recorded every 3 s: nothing below that is of the service.
    for name in ("dispersion_1s", "gap_cv"):
        del figures[name]
    table = _fitted_to(path, planned) | {"sharing": _sharing(planned)}
    keys = ("dispersion_30s", "dispersion_60s", "peak_to_mean")
    return _best(table, _wanderings(len(planned) / span_s, (1.0,)), figures, span_s, keys)


def reasoning(folder: Path) -> Table:
    """Level and drift by the ten-minute table of a reasoning service, bursts and lengths by its clients."""
    path = folder / "servegen_clients_10min.csv.gz"
    rows = [
        row for _, row in csv_rows(folder / "servegen_rate_10min.csv.gz", ("model", "rate")) if "r1" in row["model"]
    ]
    rates = np.array([real("rate", "rate", row["rate"]) for row in rows])
    span_s = 600.0 * len(rates)
    planned = read_servegen(path, "reason/deepseek-r1", generator(0, "fit"), 0.0, span_s).planned
    figures = figures_of(planned, span_s)
    cv, memory_s = float(rates.std() / rates.mean()), -600.0 / math.log(correlation(rates))
    level = {"kind": "wandering", "rate_rps": float(rates.mean()), "memory_s": memory_s}
    # Twelve hours hold few turns of so slow a drift, so they show less of its variation than there is.
    tried = [level | {"cv": cv * more, "burstiness": shape} for more, shape in product((1.0, 1.4), (0.35, 0.25))]
    keys = ("dispersion_1s", "dispersion_10s", "gap_cv")
    return _best(_fitted_to(path, planned), tried, figures, span_s, keys, seeds=range(4))


def burstgpt(folder: Path) -> Table:
    """Levels of a rate that may change every minute, from tokens per minute; lengths are another source's."""
    path = folder / "burstgpt1_week1_tokens_per_min.csv.gz"
    tokens = _read_tokens(path)
    (isl_shares, isl), (osl_shares, osl) = BURSTGPT_ISL, BURSTGPT_OSL
    table: Table = {"trace": path.name, "sha256": source.sha256(path), "lengths": {
        "isl_shares": isl_shares, "isl_tokens": isl, "osl_shares": osl_shares, "osl_tokens": osl,
    }}  # fmt: skip
    # The tokens of a Poisson number of requests vary as a Poisson number of units of E[L²]/E[L] tokens.
    mean, square = _moments(isl_shares, isl, osl_shares, osl)
    table["arrivals"] = _markov(tokens / (square / mean), 8, 60.0, 1.0)
    table["arrivals"]["rates_rps"] = [rate * square / mean**2 for rate in table["arrivals"]["rates_rps"]]
    span_s = 60.0 * len(tokens)
    table = rounded(table)
    generated = [
        minute_figures(tokens_per_minute(load_of(table)(generator(seed, "fit"), span_s), len(tokens))) for seed in SEEDS
    ]
    return table | {"fit": compared(minute_figures(tokens), generated)}


FITS: Mapping[str, Callable[[Path], Table]] = {
    "azure-code-like": azure_code,
    "azure-conv-like": azure_conv,
    "mooncake-like": mooncake,
    "burstgpt-like": burstgpt,
    "reasoning-like": reasoning,
}


def shift_of(tables: Mapping[str, Table]) -> Table:
    """Rates at which each part of a shift asks for the same GPU time, and how it divides.

    The times are those of a 70B model in FP8 on H100: prefill on one GPU, 22.9 ms + 96.2 µs n + 2.92 ns n²; a decode
    step on two, 16.07 ms + 41.6 µs batch + 55.4 ns context, at batch 64 (fits to composed kernel times).
    """
    rates, seconds = {}, {}
    for name in SHIFT_PARTS:
        planned = load_of(tables[name])(generator(0, "shift"), 20_000 / tables[name]["fit"]["real"]["rate_rps"])
        isl, osl = np.array([[one.isl_tokens, one.osl_tokens] for one in planned], float).T
        prefill = 0.0229 + 96.2e-6 * isl + 2.92e-9 * isl**2
        step = 0.01607 + 41.6e-6 * 64 + 55.4e-9 * 64 * (isl + osl / 2)
        seconds[name] = [float(prefill.mean()), float((osl * step).mean()) * 2 / 64]
        rates[name] = SHIFT_GPUS / sum(seconds[name])
    return {"rates_rps": rates, "prefill_decode_gpu_s": seconds}


# ------------------------------------------------------------------------------------------------------------- fitting


def _fitted_to(path: Path, planned: Sequence[Planned]) -> Table:
    isl, osl = (
        np.quantile([getattr(one, name) for one in planned], SHARES).tolist() for name in ("isl_tokens", "osl_tokens")
    )
    lengths = {"isl_shares": SHARES, "isl_tokens": isl, "osl_shares": SHARES, "osl_tokens": osl}
    return {"trace": path.name, "sha256": source.sha256(path), "lengths": lengths}


def _markov(counts: Array, levels: int, step_s: float, burstiness: float) -> Table:
    """Levels and moves, with the levels scaled so that their long-run mean is that of the counts."""
    means, moves = fitted(counts, levels)
    means *= counts.mean() / (at_rest(moves) @ means)
    rates = (means / step_s).tolist()
    return {
        "kind": "markov", "step_s": step_s, "burstiness": burstiness, "rates_rps": rates, "moves": moves.tolist()
    }  # fmt: skip


def _wanderings(rate_rps: float, shapes: Iterable[float]) -> list[Table]:
    return [
        {"kind": "wandering", "rate_rps": rate_rps, "cv": cv, "memory_s": memory_s, "burstiness": shape}
        for shape, cv, memory_s in product(
            shapes, (0.06, 0.08, 0.1, 0.12, 0.15, 0.18, 0.21, 0.25, 0.3), (75.0, 150.0, 300.0, 600.0, 1200.0)
        )
    ]


def _sharing(planned: Sequence[Planned]) -> Table:
    """One pass over the prompts: how many go on from an earlier one, by how much, and how soon."""
    owner: dict[int, int] = {}
    growths, ages = [], []
    system = _common([one.blocks for one in planned])
    for number, one in enumerate(planned):
        shared = next((i for i, block in enumerate(one.blocks) if block not in owner), len(one.blocks))
        if shared > system:
            parent = owner[one.blocks[shared - 1]]
            growths.append(one.isl_tokens - planned[parent].isl_tokens)
            ages.append(number - parent)
        owner.update(dict.fromkeys(one.blocks, number))
    grown = np.log([growth for growth in growths if growth > 0])
    return {
        "system_blocks": system, "follow": len(growths) / len(planned), "growth_p50": math.exp(np.median(grown)),
        "growth_sigma": float(grown.std()), "recent": 2 * int(np.median(ages)),
    }  # fmt: skip


def _common(blocks: Sequence[tuple[int, ...]]) -> int:
    """Leading blocks that all prompts have."""
    columns = zip(*blocks, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _best(
    table: Table, arrivals: Sequence[Table], figures: Table, span_s: float, keys: Sequence[str],
    seeds: Sequence[int] = SEEDS,
) -> Table:  # fmt: skip
    """The arrivals whose mean figures over the seeds are nearest to the trace's.

    That is by squared logarithms of their ratios over `keys` and the squared difference of the correlations; of two
    alike, the one whose runs stray less from the trace's rate.
    """

    def generated(some: Table, seeds: Sequence[int]) -> list[Table]:
        made = load_of(table | {"arrivals": some})
        return [figures_of(made(generator(seed, "fit"), span_s), span_s) for seed in seeds]

    def distance(some: Table) -> float:
        found = generated(some, seeds)
        ratios = [float(np.mean([one[key] for one in found])) / figures[key] for key in keys]
        off = float(np.mean([one["correlation_60s"] for one in found])) - figures["correlation_60s"]
        astray = float(np.std([one["rate_rps"] for one in found])) / figures["rate_rps"]
        return math.fsum([*(math.log(ratio) ** 2 for ratio in ratios), off * off, astray * astray])

    table, arrivals = rounded(table), rounded(arrivals)
    best = min(arrivals, key=distance)
    return table | {"arrivals": best, "fit": compared(figures, generated(best, SEEDS))}


def _read_tokens(path: Path) -> Array:
    """Minutes that are absent had no request."""
    rows = [(number, row) for number, row in csv_rows(path, ("minute", "tokens_per_s"))]
    minutes = [int(real(f"{path}, row {number}", "minute", row["minute"])) for number, row in rows]
    tokens = np.zeros(max(minutes) + 1)
    tokens[minutes] = [60 * real(f"{path}, row {number}", "tokens_per_s", row["tokens_per_s"]) for number, row in rows]
    return tokens


def _moments(*columns: Sequence[float]) -> tuple[float, float]:
    """Mean and mean square of ISL + OSL, drawn independently from straight-line tables."""
    mean, variance = 0.0, 0.0
    for shares, tokens in (columns[:2], columns[2:]):
        width, low, high = np.diff(shares), np.array(tokens[:-1], float), np.array(tokens[1:], float)
        first, second = (width * (low + high) / 2).sum(), (width * (low**2 + low * high + high**2) / 3).sum()
        mean, variance = mean + float(first), variance + float(second - first**2)
    return mean, variance + mean**2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
