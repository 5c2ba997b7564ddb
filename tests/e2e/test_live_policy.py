"""Policy `dopd` by itself on a live emulated cluster: the load turns from prompts to answers, and roles follow it.

The same load in virtual time says what should happen. A busy machine makes live runs slower, never wrong, so what is
compared is what speed cannot change: every token comes, and roles change the same way.
"""

import random
import sys
from pathlib import Path

import pytest

from dopd.config import ClusterConfig, Config, EngineConfig, ForecasterConfig, GatewayConfig, PolicyConfig, SloConfig
from dopd_loadgen.model import Planned
from dopd_loadgen.report.metrics import summarise
from tests.e2e.live_load import Told, later, run_live, run_virtual_twin

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

IDLE_S, PART_S = 2.0, 7.0
PARTS = ((8.0, 1400, 12), (12.0, 100, 100))
"""Requests per second, mean input and output tokens: twice what one prefill worker does, then answers, for
which it should decode again."""
NEAR = 0.25
SPAN_S = IDLE_S + PART_S * len(PARTS)
CONFIG = Config(
    cluster=ClusterConfig(prefill=1, decode=3),
    slo=SloConfig(tpot_s=0.05),
    policy=PolicyConfig(name="dopd"),
    gateway=GatewayConfig(window_s=2.0),
    forecaster=ForecasterConfig(bin_s=2.0, horizons_s=(2.0,)),
    engine=EngineConfig(kind="sim", profile="a100-opt-66b-tp4"),
)


def turning() -> list[Planned]:
    """The load, always the same."""
    rng, planned = random.Random("live-policy"), []
    for part, (rate, isl, osl) in enumerate(PARTS):
        at_s = part * PART_S + rng.expovariate(rate)
        while at_s < (part + 1) * PART_S:
            lengths = (int(mean * rng.uniform(0.7, 1.3)) for mean in (isl, osl))
            planned.append(Planned(len(planned), at_s, *lengths))
            at_s += rng.expovariate(rate)
    return later(planned, IDLE_S)


def test_roles_follow_the_load_live_as_in_virtual_time_and_no_token_is_lost(tmp_path: Path) -> None:
    schedule = turning()
    twin = run_virtual_twin(CONFIG, schedule, 1, SPAN_S)
    live = run_live(CONFIG, schedule, 1, SPAN_S, tmp_path)
    for name, one in (("live", live), ("virtual", twin)):
        print(f"\n{name}: attainment {attained(one):.1%}, {one.flips} flips, {reasons(one)}")
    for one in (live, twin):
        assert [record.failure for record in one.run.records] == [""] * len(schedule)
        assert [sum(record.counts) for record in one.run.records] == [planned.osl_tokens for planned in schedule]
        assert one.directions == {"prefill", "decode"}  # to prompts, and back to answers
        assert one.moves[0].changes[0].role == "prefill"
    assert all(record.why == "plan" for record in live.moves)
    if not summarise(live.run).degraded:  # the client had its share of the machine
        assert abs(attained(live) - attained(twin)) < NEAR


def attained(one: Told) -> float:
    return summarise(one.run).figures.attainment.joint or 0.0


def reasons(one: Told) -> list[str]:
    return [f"{record.at_s - one.run.started_unix_s:.1f} {record.reason}" for record in one.moves]
