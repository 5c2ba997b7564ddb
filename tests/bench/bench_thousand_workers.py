"""A thousand workers in one process, in virtual time, under conversations at the rate that 8 workers have each.

Run: `.venv/bin/pytest -s --timeout 0 tests/bench/bench_thousand_workers.py`. Measures and asserts nothing about time.
"""

from dopd.config import ClusterConfig, Config, EngineConfig, PolicyConfig
from dopd_loadgen.workload.plan import plan
from dopd_loadgen.workload.spec import WorkloadSpec
from tests.bench.speed import measured

SPAN_S, WORKERS = 60.0, 1000
PREFILL = 375


def test_a_minute_of_a_thousand_workers() -> None:
    config = Config(
        cluster=ClusterConfig(prefill=PREFILL, decode=WORKERS - PREFILL),
        engine=EngineConfig(kind="sim", profile="h100-llama-70b-fp8-tp2"),
        policy=PolicyConfig(name="simple"),
    )
    spec = WorkloadSpec(source="azure-conv-like", rate_scale=WORKERS / 8, duration_s=SPAN_S, seed=1)
    schedule = plan(spec)
    run = measured(schedule, config, SPAN_S)
    assert len(run.records) == len(schedule)
