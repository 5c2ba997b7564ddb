"""A broker of three nodes that loses one under load: the gateway's own, and the one that leads the ledger."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from dopd.errors import BusError, Unavailable
from dopd.ledger.jetstream import JetStreamLedger
from dopd.runtime.clock import RealRuntime
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.subjects import ROLES
from tests.e2e.live import OTHER, Live
from tests.e2e.scattered import Scattered, clients_of
from tests.nats_cluster import NatsCluster
from tests.nats_server import quiet_port

pytestmark = [pytest.mark.nats, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120)]
ISL, OSL, RATE = 600, 100, 8.0
KEYS = "KV_dopd_ledger"


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("brokers")) as running:
        yield running


@pytest.fixture(scope="module")
def up(brokers: NatsCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scattered]:
    settings = {
        "cluster__nats_url": brokers.url, "policy__name": "simple", "engine__kind": "sim",
        "engine__profile": "a100-qwen2.5-14b-bf16-tp1", "gateway__port": quiet_port(),
    }  # fmt: skip
    with Scattered(tmp_path_factory.mktemp("cluster"), **settings) as running:
        running.start("store", "dopd.engine.sim.store")
        running.start("gateway", "dopd_gateway", "--gateway-id", "g1")
        for name, module in (("w1", "dopd_prefill"), ("w2", "dopd_decode"), ("w3", "dopd_decode")):
            running.start(name, module, "--worker-id", name)
        running.start("planner", "dopd_planner")
        yield running


@pytest.fixture
async def clients(brokers: NatsCluster, up: Scattered) -> AsyncIterator[Live]:
    async with clients_of(up, brokers.url, 3, **up.settings) as connected:
        await connected.until_ready(connected.url)
        await connected.until_planner(workers=3)
        yield connected
        assert connected.verdict() == []
        assert not connected.failures()
        assert not [asked.broken for asked in connected.asked if asked.broken]
        await connected.idle()


async def change(clients: Live) -> int:
    """Give w3 the other role by way of the planner, as soon as the ledger takes it; the worker's epoch afterwards."""
    for _ in range(200):
        try:
            return await changed(clients)
        except (Unavailable, BusError):  # "the ledger does not answer, roles are held", or our own node has died
            await asyncio.sleep(0.1)
    raise AssertionError("no role change within 20 s")


async def changed(clients: Live) -> int:
    role = OTHER[clients.cluster.states["w3"].role]
    request = RolesRequest(action="set", worker_id="w3", role=role, drain="overlap", until="accepting", timeout_s=4.0)
    await clients.bus.request(ROLES.at(), request, (RolesReply,), 5.0)
    return clients.cluster.states["w3"].epoch


async def test_requests_go_on_when_the_gateways_node_dies(brokers: NatsCluster, clients: Live) -> None:
    async with clients.open_load(RATE, ISL, OSL):
        await asyncio.sleep(2.0)
        dead = brokers.node_of("gateway")
        brokers.nodes[dead].kill()
        await asyncio.sleep(2.0)
        assert brokers.node_of("gateway") != dead
        brokers.nodes[dead].start()
        await asyncio.sleep(1.0)
    assert len(clients.asked) > 20


async def test_the_ledger_goes_on_when_the_node_that_leads_it_dies(brokers: NatsCluster, clients: Live) -> None:
    before = await change(clients)
    async with clients.open_load(RATE, ISL, OSL):
        dead = brokers.leader_of(KEYS)
        brokers.nodes[dead].kill()
        after = await change(clients)
    assert after > before
    assert brokers.leader_of(KEYS) not in ("", dead)
    ledger = await JetStreamLedger.open(brokers.url, RealRuntime(), timeout_s=10.0)
    try:
        assert len(await ledger.read("decisions")) >= 2
    finally:
        await ledger.close()
    brokers.nodes[dead].start()
