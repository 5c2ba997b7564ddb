"""Prefill and decode workers with unlike engines: who gets which, who may not flip, and what a cold start costs."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from dopd.cluster import ClusterView
from dopd.config import ClusterConfig, Config, EngineConfig, PolicyConfig, load
from dopd.errors import ConfigError, RequestError
from dopd.obs.log import logs_from
from dopd.perf.model import prefill_s, step_s, transfer_s
from dopd.perf.profile import PROFILES
from dopd.policy import policy_named
from dopd.policy.base import ForecastView, Plan
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd.supervisor.console import Console
from dopd.supervisor.resolve import resolve
from dopd_loadgen.cluster import LocalCluster
from dopd_loadgen.model import Planned
from dopd_loadgen.sim import BUS_LATENCY_S, Simulation, simulate
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.subjects import ROLES

PREFILL = PROFILES["dopd-h100-70b-p-tp1"]
DECODE = PROFILES["dopd-h100-70b-d-tp2"]
ENGINE = EngineConfig(profile=PREFILL.name, decode_profile=DECODE.name, save_decode_cache=False)
SIMPLE = PolicyConfig(name="simple")
CONFIG = Config(cluster=ClusterConfig(prefill=2, decode=1), engine=ENGINE, policy=SIMPLE)


def prompt(planned: Planned) -> list[int]:
    return list(range(1 + planned.index * 10_000, 1 + planned.index * 10_000 + planned.isl_tokens))


def test_each_phase_takes_the_time_of_its_own_engine() -> None:
    with logs_from("warning"):
        run = simulate([Planned(0, 0.0, 600, 20)], Simulation(CONFIG, 1, prompt, 60.0, 5.0))
    assert run.target == f"2P1D {PREFILL.name} + {DECODE.name}" and run.settings == {}
    times = run.records[0].times_s
    assert len(times) == 20 and run.gpus == 2 * PREFILL.gpus + DECODE.gpus == 4
    assert times[0] == pytest.approx(prefill_s(PREFILL, 600) + transfer_s(PREFILL, 512), abs=10 * BUS_LATENCY_S)
    steps = [later - earlier for earlier, later in pairwise(times[1:])]
    assert steps == pytest.approx([step_s(DECODE, 0, 0, 1, 600 + n) for n in range(1, 19)], rel=1e-3)


def test_a_run_says_where_it_takes_an_engine_far_beyond_what_was_measured() -> None:
    with logs_from("warning"):
        run = simulate([Planned(0, 0.0, 3000, 2)], Simulation(CONFIG, 1, prompt, 60.0, 5.0))
    assert run.settings == {"beyond": [f"{PREFILL.name}: prompt_tokens 3000 in a step, measured up to 1014"]}


def test_a_flip_between_unlike_engines_is_refused_and_the_table_has_their_gpus() -> None:
    async def main() -> RolesReply:
        cluster = LocalCluster(VirtualRuntime(1), CONFIG)
        await cluster.start()
        asker = cluster.broker.connect("asker")
        await asyncio.sleep(10.0)
        with pytest.raises(
            RequestError, match=f"its engine is '{PREFILL.name}', that of decode worker w3 '{DECODE.name}'"
        ):
            await asker.request(
                ROLES.at(), RolesRequest(action="set", worker_id="w1", role="decode"), (RolesReply,), timeout_s=70.0
            )
        reply = await asker.request(ROLES.at(), RolesRequest(action="list"), (RolesReply,), timeout_s=5.0)
        await cluster.stop()
        assert isinstance(reply, RolesReply)
        return reply

    with logs_from("warning"):
        rows = run_virtual(main()).workers
    assert [(row.role, row.gpus, row.engine) for row in rows] == [
        ("prefill", 1, PREFILL.name),
        ("prefill", 1, PREFILL.name),
        ("decode", 2, DECODE.name),
    ]


@pytest.mark.parametrize("cold", [False, True])
def test_a_cold_worker_serves_after_its_start_up_time(cold: bool) -> None:
    async def main() -> float:
        cluster = LocalCluster(VirtualRuntime(1), CONFIG)
        await cluster.start()
        began_s = cluster.runtime.now()
        await cluster.add_worker("w4", "decode", cold=cold)
        took_s = cluster.runtime.now() - began_s
        assert cluster.gpus == 6
        await cluster.stop()
        return took_s

    with logs_from("warning"):
        assert run_virtual(main()) == pytest.approx(DECODE.start_s if cold else 0.0, abs=0.1)
    assert DECODE.start_s == 45.0 and PREFILL.start_s == 30.0


class Nobody:
    """A planner that leaves everybody where they are; it might not."""

    def initial(self) -> None:
        return None

    def plan(
        self, state: None, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, now_s: float
    ) -> tuple[None, Plan]:
        return None, Plan({})


PLANNED = replace(policy_named("simple"), name="planned", planner=Nobody)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("tests.integration.test_engine_pair:PLANNED", "policy planned changes roles"),
        ("tests.policies.dyna:DYNA", "policy dyna.* has mixed workers"),
    ],
)
def test_a_policy_that_changes_roles_needs_engines_that_are_alike(policy: str, reason: str) -> None:
    config = Config(engine=ENGINE, policy=PolicyConfig(name=policy))

    async def main() -> None:
        await LocalCluster(VirtualRuntime(1), config).start()

    with pytest.raises(ConfigError, match=rf"decode_profile: {DECODE.name} is unlike .*{reason}; leave it empty"):
        run_virtual(main())


async def test_it_is_told_before_anything_starts() -> None:
    env = {"DOPD__ENGINE__DECODE_PROFILE": DECODE.name, "DOPD__ENGINE__PROFILE": PREFILL.name}
    asked = load(None, env | {"DOPD__POLICY__NAME": "tests.policies.dyna:DYNA", "DOPD__GATEWAY__PORT": "0"})
    with pytest.raises(ConfigError, match="has mixed workers"):
        resolve(asked, Console(), True, {})
    alike = load(None, {"DOPD__POLICY__NAME": "tests.policies.dyna:DYNA", "DOPD__GATEWAY__PORT": "0"})
    assert resolve(alike, Console(), True, {}).engine.decode_profile == ""


def test_kv_moves_between_engines_of_one_model_only() -> None:
    async def main() -> None:
        other = replace(DECODE, kv_token_bytes=1 + DECODE.kv_token_bytes)
        await LocalCluster(VirtualRuntime(1), CONFIG, profile=PREFILL, decode_profile=other).start()

    with pytest.raises(ConfigError, match="in kv_token_bytes, so KV cannot move"):
        run_virtual(main())
