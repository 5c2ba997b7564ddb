"""Clusters and forecasts as planners see them, made by a few numbers."""

import random
from dataclasses import replace

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import ForecastView, Plan, SeriesView


def worker(worker_id: str, role: str, **more: object) -> WorkerView:
    fields = {"incarnation": f"{worker_id}-1", "epoch": 1, "serving": True, "kv_total_tokens": 945_029, "credit": 8}
    return WorkerView(worker_id=worker_id, role=role, **fields | more)  # type: ignore[arg-type]


def cluster_of(
    prefill: int, decode: int, decoding: int = 0, step_s: float = 0.0, waiting_tokens: int = 0, unplaced: int = 0
) -> ClusterView:
    """`decoding` requests with 1,000 tokens of context on each decode worker."""
    workers = [worker(f"w{n:04}", "prefill") for n in range(prefill)]
    load = {"decoding": decoding, "running": decoding, "context_tokens": 1000 * decoding, "step_s": step_s}
    workers += [worker(f"w{n:04}", "decode", **load) for n in range(prefill, prefill + decode)]
    return ClusterView(tuple(workers), waiting_prefill_tokens=waiting_tokens, waiting_decodes=unplaced)


def forecast_of(
    rate: float,
    isl: float = 1000.0,
    osl: float = 200.0,
    isl_std: float = 800.0,
    start_s: float = 0.0,
    over: float = 1.2,
) -> ForecastView:
    """`over` is the 90 % quantile of every series over its mean."""
    series = {
        name: SeriesView(point, ((0.1, point / over), (0.5, point), (0.9, point * over)))
        for name, point in (("requests_per_s", rate), ("prefill_work", rate * 0.02), ("decode_work", rate * 0.014))
    }
    return ForecastView(rate, isl, isl_std**2, osl, start_s, 10.0, "ses", series)


def noisy(rate: float, share: float, rounds: int, seed: int = 1) -> list[float]:
    """A constant rate with noise."""
    rng = random.Random(f"planner/{seed}")
    return [max(0.0, rate * (1 + share * rng.gauss(0, 1))) for _ in range(rounds)]


def after(cluster: ClusterView, plan: Plan) -> ClusterView:
    """The cluster once the plan is carried out."""
    workers = tuple(replace(w, role=plan.roles.get(w.worker_id, w.role)) for w in cluster.workers)
    return replace(cluster, workers=workers)


def split_of(cluster: ClusterView) -> tuple[int, int]:
    """(prefill, decode) workers."""
    prefill = sum(w.role == "prefill" for w in cluster.workers)
    return prefill, len(cluster.workers) - prefill
