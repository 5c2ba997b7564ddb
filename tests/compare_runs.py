"""Comparisons made by hand: rows whose differences can be checked on paper, and a whole made of them."""

from typing import Any

from dopd_loadgen.compare.model import Row
from dopd_loadgen.compare.result import BoundRow, Comparison, Curve, Detail, Found, LoadRow, Prepared, Wanted
from dopd_loadgen.model import QueueSample, RoleCount

TRACE, PROFILE = "azure-conv-like", "h200"
POLICIES = ["simple", "aggregated", "oracle-ratio"]
LARGEST = {"simple": 1.0, "aggregated": 1.25, "oracle-ratio": 0.0}


def row(policy: str, rate_scale: float, seed: int, goodput_rps: float, **more: Any) -> Row:
    """Two GPUs per worker, two workers; what is not given has nothing to do with the policy."""
    values: dict[str, Any] = {
        "requests": 100,
        "goodput_rps": goodput_rps,
        "goodput_tps": goodput_rps * 100,
        "goodput_rps_per_gpu": goodput_rps / 4,
        "attainment": min(1.0, goodput_rps / (10 * rate_scale)),
        "attainment_ttft": 1.0,
        "attainment_tpot": 1.0,
        "p50_ttft_s": 0.1,
        "p90_ttft_s": 0.2,
        "p99_ttft_s": 0.3456,
        "p50_tpot_s": 0.01,
        "p90_tpot_s": 0.02,
        "p99_tpot_s": 0.03,
        "gpus": 4,
        "gpus_per_worker": 2,
        "gpu_seconds": 240.0,
        "flips": 0,
        "failed": 1,
    }
    return Row(policy=policy, trace=TRACE, profile=PROFILE, rate_scale=rate_scale, seed=seed, **(values | more))


def detail(policy: str, rate_scale: float) -> Detail:
    curve = Curve([0.01, 0.02, 3.0], [0.3, 0.6, 0.9])
    return Detail(
        policy=policy,
        trace=TRACE,
        profile=PROFILE,
        rate_scale=rate_scale,
        seed=0,
        span_s=60.0,
        ttft=curve,
        tpot=curve,
        bins=[(0.0, 30.0, 60, 50), (30.0, 60.0, 50, 10)],
        roles=[RoleCount(0.0, 1, 1), RoleCount(20.0, 0, 2)],
        queues=[QueueSample(0.0, 0, 0, 0, 0), QueueSample(30.0, 4, 9_000, 20, 40_000)],
    )


def comparison(seeds: int = 3, **more: Any) -> Comparison:
    """At rate 1 all are alike. At rate 2 `aggregated` is better by 1 to 1.2 req/s, the oracle now and then."""
    rows = []
    for seed in range(seeds):
        rows += [row(policy, 1.0, seed, 10.0) for policy in POLICIES]
        for policy, goodput in (
            ("simple", 12.0),
            ("aggregated", 13.0 + 0.1 * seed),
            ("oracle-ratio", 12 + (-1) ** seed),
        ):
            rows.append(row(policy, 2.0, seed, goodput + seed))
    config = Wanted(
        traces={TRACE: {"source": TRACE, "duration_s": 60.0}},
        profiles={PROFILE: 2},
        policies=POLICIES,
        reference="simple",
        workers=2,
        rates=[1.0, 2.0],
        seeds=list(range(seeds)),
        tuning_seed=1000,
        tune_rate=None,
        duration_s=60.0,
        warmup_s=0.0,
        cooldown_s=0.0,
        timeout_s=600.0,
        slo_ttft_s=2.0,
        slo_tpot_s=0.08,
        targets=[0.9],
    )
    ready = Prepared(
        policy="aggregated",
        trace=TRACE,
        profile=PROFILE,
        prefill=2,
        decode=0,
        tune_rate=1.5,
        note="budget <512>",
    )
    made = Comparison(
        config=config,
        rows=rows,
        prepared=[ready],
        loads=[load(rate, seed) for rate in (1.0, 2.0) for seed in range(seeds)],
        bounds=[bound(rate, seed) for rate in (1.0, 2.0) for seed in range(seeds)],
        goodput=[found(policy, seed, rate) for policy, rate in LARGEST.items() for seed in range(seeds)],
        details=[detail(policy, 2.0) for policy in POLICIES],
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def load(rate: float, seed: int) -> LoadRow:
    return LoadRow(
        trace=TRACE, profile=PROFILE, rate_scale=rate, seed=seed, requests=600, span_s=60.0, offered_rps=10 * rate,
        input_tps=1e4, output_tps=1e3, clipped={"isl": 3} if seed == 0 else {},
    )  # fmt: skip


def bound(rate: float, seed: int) -> BoundRow:
    return BoundRow(
        trace=TRACE, profile=PROFILE, rate_scale=rate, seed=seed, goodput_rps=9.5 * rate, goodput_tps=950 * rate,
        attainment=0.95, why="GPU time",
    )  # fmt: skip


def found(policy: str, seed: int, rate: float) -> Found:
    return Found(
        policy=policy, trace=TRACE, profile=PROFILE, seed=seed, target=0.9, rate_scale=rate * (1 + 0.01 * seed),
        kind="found" if rate else "below", goodput_rps=9 * rate, goodput_rps_per_gpu=9 * rate / 4,
        monotone=policy != "aggregated", probed=[(1.0, 0.95), (2.0, 0.6)],
    )  # fmt: skip
