"""Eight simulated hours of Azure's conversations on 8 workers: wanted in under 5 minutes of one core.

Run: `.venv/bin/pytest -s --timeout 0 tests/bench/bench_eight_hours.py`. Measures and asserts nothing about time.
"""

import pytest

from dopd.config import ClusterConfig, Config, EngineConfig, PolicyConfig
from dopd_loadgen.workload.plan import plan
from dopd_loadgen.workload.spec import WorkloadSpec
from tests.bench.speed import ROOT, measured

SPAN_S = 8 * 3600.0
TRACE = ROOT.parent / "shared" / "data" / "traces" / "azure_llm_2023_conv.csv.gz"
CONFIG = Config(
    cluster=ClusterConfig(prefill=3, decode=5),
    engine=EngineConfig(kind="sim", profile="h100-llama-70b-fp8-tp2"),
    policy=PolicyConfig(name="simple"),
)


@pytest.mark.parametrize("source", [str(TRACE), "azure-conv-like"], ids=["azure-conv", "azure-conv-like"])
def test_eight_hours_of_conversations(source: str) -> None:
    if source == str(TRACE) and not TRACE.exists():
        pytest.skip(f"{TRACE} is not there: the shared trace data is missing")
    loop = source == str(TRACE)
    schedule = plan(WorkloadSpec(source=source, loop=loop, turn=loop, duration_s=SPAN_S, seed=1))
    run = measured(schedule, CONFIG, SPAN_S)
    assert len(run.records) == len(schedule)
