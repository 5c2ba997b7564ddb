"""From a run to its row of figures, and to what its pictures need. Consumes a `Run`; its records are not kept. Pure."""

from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np

from dopd_loadgen.compare.model import Contender, Row, Setting
from dopd_loadgen.compare.result import Curve, Detail
from dopd_loadgen.model import Run
from dopd_loadgen.report.metrics import summarise
from dopd_loadgen.report.result import Stored
from dopd_loadgen.report.samples import samples
from dopd_loadgen.report.summary import Settings, Summary

FIGURES = Settings(metrics=("ttft", "tpot"), percentiles=(50.0, 90.0, 99.0))
POINTS = 150
"""Of a distribution's curve."""


def row(run: Run, contender: Contender, setting: Setting, trace: str, rate_scale: float, seed: int) -> Row:
    """The figures of one run, those of its measured window. An empty window attains 0."""
    summary = summarise(_windowed(run, setting), FIGURES)
    figures, share = summary.figures, summary.figures.attainment
    spreads = {name: figures.latencies[name].percentiles_s for name in ("ttft", "tpot")}
    return Row(
        policy=contender.name,
        trace=trace,
        profile=setting.config.engine.profile,
        rate_scale=rate_scale,
        seed=seed,
        requests=figures.requests,
        goodput_rps=figures.goodput_rps,
        goodput_tps=figures.goodput_tps,
        goodput_rps_per_gpu=summary.goodput_rps_per_gpu or 0.0,
        attainment=share.joint or 0.0,
        attainment_ttft=share.ttft or 0.0,
        attainment_tpot=share.tpot or 0.0,
        p50_ttft_s=spreads["ttft"].get("50"),
        p90_ttft_s=spreads["ttft"].get("90"),
        p99_ttft_s=spreads["ttft"].get("99"),
        p50_tpot_s=spreads["tpot"].get("50"),
        p90_tpot_s=spreads["tpot"].get("90"),
        p99_tpot_s=spreads["tpot"].get("99"),
        gpus=run.gpus,
        gpus_per_worker=run.gpus // setting.workers,
        gpu_seconds=run.gpu_seconds,
        flips=flips(run),
        failed=figures.requests - figures.completed,
        note=contender.note,
    )


def flips(run: Run) -> int:
    """Role changes after the start: each takes a worker from one role and gives it to another."""
    counts = [(one.n_prefill, one.n_decode, one.n_mixed) for one in run.roles]
    moved = [
        sum(abs(a - b) for a, b in zip(*two, strict=True)) for two in pairwise(counts) if sum(two[0]) == sum(two[1])
    ]
    return sum(moved) // 2


def detail(run: Run, named: Row, setting: Setting) -> Detail:
    """What the pictures of one run need, under the names of its row."""
    whole = _windowed(run, setting)
    summary = summarise(whole, FIGURES)
    stored = Stored("", run.label, {}, whole, summary)
    return Detail(
        policy=named.policy,
        trace=named.trace,
        profile=named.profile,
        rate_scale=named.rate_scale,
        seed=named.seed,
        span_s=run.span_s,
        ttft=_curve(stored, "ttft"),
        tpot=_curve(stored, "tpot"),
        bins=_bins(summary),
        roles=[one for one in run.roles if one.at_s < run.span_s],
        queues=[one for one in run.queues if one.at_s < run.span_s],
    )


def _windowed(run: Run, setting: Setting) -> Run:
    return msgspec.structs.replace(run, warmup_s=setting.warmup_s, cooldown_s=setting.cooldown_s)


def _curve(stored: Stored, metric: Literal["ttft", "tpot"]) -> Curve:
    """Shares of all requests: what failed never comes, so a curve ends below 1."""
    made = samples(stored, metric)
    if not made.values_s:
        return Curve([], [])
    values = np.sort(made.values_s)
    places = np.unique(np.linspace(0, len(values) - 1, POINTS).astype(int))
    return Curve(values[places].tolist(), ((places + 1) / made.requests).tolist())


def _bins(summary: Summary) -> list[tuple[float, float, int, int]]:
    return [(one.start_s, one.end_s, one.requests, one.good) for one in summary.bins]
