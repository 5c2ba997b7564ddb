"""How long the planner of `dopd` thinks, by the number of workers; every split of them is judged.

Run: `.venv/bin/pytest -s tests/bench/bench_planner.py`. Measures and asserts nothing about time.
"""

import time

import pytest

from dopd.perf.profile import PROFILES
from dopd.policy.base import Ground
from dopd.policy.ratio import RatioPlanner
from dopd.slo import Slo
from tests.planner_rig import cluster_of, forecast_of

ROUNDS = 20


@pytest.mark.parametrize("workers", [8, 100, 1000])
@pytest.mark.parametrize("profile", ["h200-llama-3.1-8b-fp8-tp1", "h100-llama-70b-fp8-tp2"])
def test_a_round_of_planning(workers: int, profile: str) -> None:
    planner = RatioPlanner(Ground(PROFILES[profile]))
    cluster = cluster_of(workers // 2, workers - workers // 2, decoding=20, step_s=0.03)
    took_s = []
    for turn in range(ROUNDS):
        # Each round another load, so that nothing can be remembered.
        forecast = forecast_of(rate=workers * (0.5 + 0.1 * turn), start_s=10.0 * turn)
        began_s = time.process_time()
        _, plan = planner.plan(planner.initial(), forecast, cluster, Slo(), 10.0 * turn)
        took_s.append(time.process_time() - began_s)
        assert plan.alternatives
    ordered = sorted(took_s)
    print(
        f"\n{workers} workers, {profile}: median {1e3 * ordered[ROUNDS // 2]:.1f} ms, most {1e3 * ordered[-1]:.1f} ms"
    )
