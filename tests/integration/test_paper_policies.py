"""The released planners on whole virtual clusters: roles follow a load that shifts, warm and with cold starts."""

import random
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from dopd.bus import Delivery
from dopd.config import ClusterConfig, Config, EngineConfig, ForecasterConfig, GatewayConfig
from dopd.obs.log import logs_from
from dopd.perf import profile as profiles
from dopd.policy import policy_named
from dopd.policy.base import Ground
from dopd_loadgen.compare.ground import Prompts
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.sim import Simulation, Stage, simulate
from dopd_proto.subjects import FORECAST, WORKER_STATE
from dopd_proto.telemetry import Forecast, WorkerState

pytest.importorskip("statsmodels")
SPAN_S, PART_S = 60.0, 20.0
PARTS = ((6.0, 2500, 12), (16.0, 200, 400), (6.0, 2500, 12))
"""Requests per second, mean input and output tokens: prompts, answers, prompts."""
SHORT_STARTS = "prefill_start_s=3,decode_start_s=4.5"
QUICK = "interval_s=4,pull_s=1"


def shifting() -> list[Planned]:
    rng, planned = random.Random("paper-policies"), []
    for part, (rate, isl, osl) in enumerate(PARTS):
        at_s = part * PART_S + rng.expovariate(rate)
        while at_s < (part + 1) * PART_S:
            lengths = (int(mean * rng.uniform(0.5, 1.5)) for mean in (isl, osl))
            planned.append(Planned(len(planned), at_s, *lengths))
            at_s += rng.expovariate(rate)
    return planned


@dataclass
class Seen:
    """Every state of a worker, and every forecast."""

    states: list[WorkerState] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)

    async def listen(self, stage: Stage) -> None:
        bus = stage.cluster.broker.connect("listener")
        await bus.subscribe(WORKER_STATE.at(), self._state)
        await bus.subscribe(FORECAST.at(), self._forecast)

    def _state(self, delivery: Delivery[WorkerState]) -> None:
        self.states.append(delivery.message)

    def _forecast(self, delivery: Delivery[Forecast]) -> None:
        self.forecasts.append(delivery.message)


@pytest.fixture(scope="module")
def little_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An A100 with so little KV memory that a decode worker holds 75 requests with answers."""
    shipped = Path(profiles.__file__).parent / "profiles" / "a100-qwen2.5-14b-bf16-tp1.toml"
    lines = [line for line in shipped.read_text().splitlines() if not line.startswith("kv_total_tokens")]
    path = tmp_path_factory.mktemp("profile") / "little.toml"
    path.write_text("kv_total_tokens = 30000\n" + "\n".join(lines))
    return path


@cache
def ran(name: str, profile: Path, sizes: tuple[int, int]) -> tuple[Run, Seen]:
    """On 4 workers. Short bins and, but for one run, the last value as the forecast: the load lasts a minute."""
    models = ForecasterConfig().models if name == "dopd-paper" else ("last",)
    config = Config(
        cluster=ClusterConfig(prefill=sizes[0], decode=sizes[1]),
        engine=EngineConfig(profile=str(profile)),
        gateway=GatewayConfig(window_s=5.0),
        forecaster=ForecasterConfig(bin_s=5.0, horizons_s=(5.0,), models=models),
    )
    base, _, given = name.rstrip("]").partition("[")
    params = {key: float(value) for key, _, value in (pair.partition("=") for pair in given.split(",") if pair)}
    policy = policy_named(base, params, Ground(profiles.named(str(profile))))
    seen = Seen()
    what = Simulation(config, 1, Prompts(1), 120.0, SPAN_S, policy=policy, beside=seen.listen)
    with logs_from("warning"):
        return simulate(shifting(), what), seen


def changes(run: Run) -> list[int]:
    """Prefill workers gained or lost, in the order of the changes."""
    prefill = [count.n_prefill for count in run.roles]
    return [after - before for before, after in pairwise(prefill)]


FLIPPING = {
    "dopd-paper": (3, 1),
    "dopd-paper[kv_aware=0,conditional=0]": (3, 1),
    "dyn-sla": (2, 2),
    f"dyn-load[{QUICK}]": (2, 2),
    f"dopd-coldstart[{SHORT_STARTS}]": (3, 1),
    f"dyn-sla[cold=1,{SHORT_STARTS}]": (2, 2),
    f"dyn-load[cold=1,{SHORT_STARTS},{QUICK}]": (2, 2),
}


@pytest.mark.parametrize("name", FLIPPING)
def test_roles_follow_a_load_that_shifts_and_no_request_fails(name: str, little_memory: Path) -> None:
    run, _ = ran(name, little_memory, FLIPPING[name])
    assert not [record for record in run.records if record.failure]
    assert all(
        len(record.times_s) == planned.osl_tokens for record, planned in zip(run.records, shifting(), strict=True)
    )
    assert changes(run), "nobody changed its role"
    assert set(changes(run)) <= {-1, 1}, "one at a time"
    assert all(count.n_prefill >= 1 <= count.n_decode and count.n_prefill + count.n_decode == 4 for count in run.roles)
    assert run.gpu_seconds == 4 * SPAN_S


@pytest.mark.parametrize("name", ["dopd-paper", "dyn-sla", f"dyn-load[{QUICK}]"])
def test_answers_take_workers_from_prompts(name: str, little_memory: Path) -> None:
    run, _ = ran(name, little_memory, FLIPPING[name])
    ends = [count for count in run.roles if count.at_s < 2 * PART_S]
    assert ends[-1].n_decode > min(count.n_decode for count in ends)


def test_the_papers_forecasts_are_made_by_arima(little_memory: Path) -> None:
    _, seen = ran("dopd-paper", little_memory, FLIPPING["dopd-paper"])
    assert seen.forecasts and {each.model for forecast in seen.forecasts for each in forecast.series} == {"arima"}


@pytest.mark.parametrize("name", [name for name in FLIPPING if "start_s" in name])
def test_a_cold_change_takes_its_start_in_which_the_worker_does_nothing(name: str, little_memory: Path) -> None:
    run, seen = ran(name, little_memory, FLIPPING[name])
    flips = 0
    for worker_id in {state.worker_id for state in seen.states}:
        states = [state for state in seen.states if state.worker_id == worker_id]
        for number, (before, after) in enumerate(pairwise(states)):
            if before.role == after.role:
                continue
            flips += 1
            start_s = 3.0 if after.role == "prefill" else 4.5
            away = [state for state in states[: number + 1] if state.sent_s > after.sent_s - start_s + 0.3]
            assert len(away) > 8, "it says that it is there"
            assert {(state.phase, state.running, state.waiting) for state in away} == {("draining", 0, 0)}
    assert flips == len(run.roles) - 1 > 0
