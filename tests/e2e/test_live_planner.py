"""The control loop on a live emulated cluster while its broker, ledger included, its planner and its forecaster are
killed, one after the other: no request is lost, and the record goes on under a higher term, with a reason each time.
"""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from dopd.errors import BusError
from dopd.obs.explain import REASONS
from dopd.runtime.clock import OFFSET_VARIABLE
from dopd_proto.control import DecisionRecord, DecisionsReply, DecisionsRequest
from dopd_proto.subjects import DECISIONS, FORECAST
from dopd_proto.telemetry import Forecast
from tests.e2e.live import Live, demo, live

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
PATIENCE_S = 40.0


async def decisions(clients: Live) -> tuple[DecisionRecord, ...]:
    """All that the leading planner knows of; nothing while nobody answers."""
    try:
        reply = await clients.bus.request(DECISIONS.at(), DecisionsRequest(limit=1000), (DecisionsReply,), 5.0)
    except BusError:
        return ()
    return reply.decisions


async def until_decided(clients: Live, after_s: float, why: str) -> None:
    """A plan is recorded after this time by one who has listened."""
    end_s = clients.now() + PATIENCE_S
    while clients.now() < end_s:
        if [r for r in await decisions(clients) if r.at_s > after_s and r.why == "plan" and r.reason != "listening"]:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"no plan within {PATIENCE_S:.0f} s after {why}")


def latest(clients: Live) -> float:
    """On the cluster's clock."""
    return max(state.sent_s for state in clients.cluster.states.values())


async def test_the_loop_closes_again_whichever_of_its_parts_was_killed(tmp_path: Path) -> None:
    with demo(
        tmp_path,
        policy__name="dopd",
        gateway__window_s=1.0,
        forecaster__bin_s=1.0,
        forecaster__horizons_s="[1.0]",
        engine__profile="a100-qwen2.5-14b-bf16-tp1",
    ) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        async with live(up) as clients:
            await clients.until_planner(workers=4)
            async with clients.open_load(4.0, 500, 60):
                await until_decided(clients, 0.0, "the start")
                for name in ("planner", "nats", "forecaster"):
                    pid = clients.send(name, signal.SIGKILL)
                    await clients.until(partial(fresh, clients, name, pid), 20.0, f"a new {name}")
                    if name != "forecaster":
                        await until_decided(clients, latest(clients) + 1.0, f"{name} was killed")
                heard: list[Forecast] = []
                await clients.bus.subscribe(FORECAST.at(), lambda delivery: heard.append(delivery.message))
                await clients.until(lambda: heard and heard[-1].requests_per_s > 0, PATIENCE_S, "a forecast")
            told = await decisions(clients)
            assert len({clock_of(clients, name) for name in ("gateway", "w1", "planner", "forecaster")}) == 1
            assert clients.verdict() == [] and not clients.failures()
            assert not [asked.broken for asked in clients.asked if asked.broken] and len(clients.asked) > 40
    assert {record.reason for record in told} <= REASONS.keys()
    terms = [record.term for record in told]
    assert terms == sorted(terms) and terms[0] < terms[-1]
    assert any(record.reason == "listening" and record.term > terms[0] for record in told)


def clock_of(clients: Live, name: str) -> bytes:
    """What the supervisor has handed down: those that were started anew go by the clock of their elders."""
    environ = Path(f"/proc/{clients.process(name).pid}/environ").read_bytes().split(b"\0")
    return next(one for one in environ if one.startswith(OFFSET_VARIABLE.encode()))


def fresh(clients: Live, name: str, pid: int) -> bool:
    found = clients.up.state.process(name)
    return found is not None and found.pid != pid
