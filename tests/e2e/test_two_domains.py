"""Two emulated hosts, each with a KV store of its own, and a third store that both share: it goes, and comes back.

The same with real engines, LMCache servers and a network between them: `vllm/test_two_hosts.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.live import Asked, Live
from tests.e2e.scattered import Scattered, clients_of
from tests.nats_server import NatsServer, quiet_port, server_binary

pytestmark = [pytest.mark.nats, pytest.mark.slow, pytest.mark.timeout(120)]
ISL, OSL, CHUNK = 700, 30, 256
STORE = "dopd.engine.sim.store"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scattered, dict[str, object]]]:
    folder = tmp_path_factory.mktemp("hosts")
    broker = NatsServer(server_binary(), folder)
    broker.start()
    settings: dict[str, object] = {
        "cluster__nats_url": broker.url, "policy__name": "simple", "engine__kind": "sim", "engine__chunk_tokens": CHUNK,
        "engine__kv_shared": "far", "gateway__port": quiet_port(),
    }  # fmt: skip
    with Scattered(folder, **settings) as scattered:
        for domain in ("a", "b", "far"):
            scattered.start(f"store-{domain}", STORE, engine__kv_domain=domain)
        scattered.start("gateway", "dopd_gateway")
        scattered.start("a1", "dopd_prefill", "--worker-id", "a1", engine__kv_domain="a")
        scattered.start("b1", "dopd_decode", "--worker-id", "b1", engine__kv_domain="b")
        yield scattered, settings
    broker.stop()


@pytest.fixture
async def clients(up: tuple[Scattered, dict[str, object]]) -> AsyncIterator[Live]:
    scattered, settings = up
    async with clients_of(scattered, str(settings["cluster__nats_url"]), 2, **settings) as connected:
        await linked(connected, "far")
        await connected.until_ready(connected.url)
        yield connected
        assert connected.verdict() == []
        assert not connected.failures()
        await connected.idle()


async def linked(clients: Live, name: str) -> None:
    """Until both workers say that they reach this store, "" for none, and the gateway has heard."""
    states = clients.cluster.states
    await clients.until(lambda: {state.kv_shared for state in states.values()} == {name}, 20.0, f"reach {name!r}")
    await asyncio.sleep(0.1)


async def ask(clients: Live, count: int) -> list[Asked]:
    asked = [await clients.ask(ISL, OSL) for _ in range(count)]
    for each in asked:
        await each.done.wait()
    return asked


def far_tokens(clients: Live) -> int:
    return sum(state.kv_far_tokens for state in clients.cluster.states.values())


async def test_kv_of_one_domain_is_fetched_in_the_other_and_counted(
    clients: Live, up: tuple[Scattered, dict[str, object]]
) -> None:
    before, missed = far_tokens(clients), clients.kv_misses()
    await ask(clients, 8)
    await clients.until(lambda: far_tokens(clients) - before == 8 * (ISL // CHUNK * CHUNK), 5.0, "far tokens")
    assert clients.kv_misses() == missed
    scattered, _ = up
    assert scattered.metric("b1", "dopd_worker_input_tokens_total", kv="far") == far_tokens(clients)
    assert scattered.metric("a1", "dopd_worker_input_tokens_total", kv="far") == 0


async def test_without_the_shared_store_each_request_stays_in_one_domain_until_it_is_back(
    clients: Live, up: tuple[Scattered, dict[str, object]]
) -> None:
    scattered, _ = up

    def handed_over() -> float:
        return scattered.metric("a1", "dopd_worker_segments_total", end="handed_over")

    def made(name: str) -> float:
        return scattered.metric(name, "dopd_worker_output_tokens_total")

    async with clients.closed_load(4, ISL, OSL):
        await asyncio.sleep(0.5)
        assert handed_over() > 0
        scattered.kill("store-far")
        await linked(clients, "")
        await asyncio.sleep(0.5)
    over, far, missed, output = handed_over(), far_tokens(clients), clients.kv_misses(), (made("a1"), made("b1"))
    await ask(clients, 16)
    assert (handed_over(), far_tokens(clients), clients.kv_misses()) == (over, far, missed)
    assert made("a1") > output[0] and made("b1") > output[1]  # either domain computes whole requests by itself
    assert made("a1") + made("b1") == sum(output) + 16 * OSL

    scattered.start("store-far", STORE, engine__kv_domain="far")
    await linked(clients, "far")
    await ask(clients, 8)
    await clients.until(lambda: far_tokens(clients) - far == 8 * (ISL // CHUNK * CHUNK), 5.0, "far tokens again")
    assert handed_over() == over + 8 and clients.kv_misses() == missed
