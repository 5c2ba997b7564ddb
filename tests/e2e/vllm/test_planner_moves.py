"""The planner of `dopd` over real engines: a step of the load makes it change a role, while requests go on."""

import asyncio
from pathlib import Path

import pytest

from dopd_proto.control import DecisionsReply, DecisionsRequest
from dopd_proto.subjects import DECISIONS
from tests.e2e.live import Live
from tests.e2e.vllm.live_cluster import differences, real_cluster
from tests.engine_rig import Rig

pytestmark = [pytest.mark.nats, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

# Few places to decode, so that the step is too much for one decode worker on any machine.
SETTINGS = {
    "policy__name": "dopd",
    "engine__profile": "cpu-tiny-llama",
    "engine__max_running": 4,
    "cluster__prefill": 2,
    "cluster__decode": 1,
}
ISL, OSL, CLIENTS = 100, 100, 20


async def test_a_step_of_the_load_makes_the_planner_change_a_role_and_requests_go_on(
    model: Path, alone: Rig, tmp_path: Path
) -> None:
    async with real_cluster(model, tmp_path, **SETTINGS) as clients:
        async with clients.closed_load(2, ISL, OSL, timeout_s=240.0):
            await asyncio.sleep(6.0)
        assert clients.with_role("decode") == ["w3"]  # so far one is enough
        async with clients.closed_load(CLIENTS, ISL, OSL, timeout_s=240.0):
            await clients.until(lambda: len(clients.with_role("decode")) > 1, 60.0, "a second decode worker")
            (changed,) = set(clients.with_role("decode")) - {"w3"}
            await clients.until(lambda: clients.cluster.states[changed].decoding, 60.0, "the new one decodes")
            before = clients.answered()
            await clients.until(lambda: clients.answered() - before > CLIENTS, 120.0, "requests go on")
        decided = await moves(clients)
        print(f"\n{len(clients.asked)} requests; {changed} decodes now: {decided}")
        assert decided[0][0] == changed and decided[0][1] in ("grow_decode", "rebalance_decode", "emergency_decode")
        assert clients.verdict() == []
        assert not clients.failures()
        assert await differences(clients.asked, alone) == []
        await clients.idle()


async def moves(clients: Live) -> list[tuple[str, str]]:
    """Worker and reason of each change that was planned, the first first."""
    reply = await clients.bus.request(DECISIONS.at(), DecisionsRequest(limit=500), (DecisionsReply,), 10.0)
    return [(change.worker_id, record.reason) for record in reply.decisions for change in record.changes]
