"""Real engines on two hosts, an LMCache server on each, and a store behind both: prefill here, decode there.

The hosts are network namespaces; the bus has one network, KV another, whose cable to a host can be pulled.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dopd.bus.server import nats_command, nats_config
from dopd.engine.vllm.settings import VllmSettings
from tests.e2e.hosts import Hosts
from tests.e2e.live import Live
from tests.e2e.scattered import Scattered, clients_of
from tests.e2e.vllm.live_cluster import START_S, VOCABULARY, differences, running
from tests.nats_server import NatsServer, quiet_port, server_binary
from tests.resp_server import RespServer

pytestmark = [pytest.mark.nats, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
CHUNK, OSL = 32, 24
LENGTHS = (64, 300, 777, 1500)


class HostedServer(NatsServer):
    """On the bus network alone."""

    host = "127.0.0.1"

    def _command(self, port: int) -> list[str]:
        config = self._folder / "nats.conf"
        config.write_text(nats_config(self._folder / "js", host=self.host, port=port))
        return nats_command(self._binary, config, self._folder)


@asynccontextmanager
async def two_hosts(model: Path, folder: Path, hosts: Hosts, store_url: str) -> AsyncIterator[Live]:
    """A prefill worker on host a, a decode worker on host b, the rest on this machine."""
    broker = HostedServer(server_binary(), folder)
    broker.host = hosts.address("bus")
    broker.start()
    settings: dict[str, object] = {
        "cluster__nats_url": broker.url, "policy__name": "simple", "engine__kind": "vllm", "engine__model": str(model),
        "engine__kv_shared": store_url, "engine__chunk_tokens": CHUNK, "gateway__port": quiet_port(),
        "engine__lmcache_port": 5655, "engine__lmcache_gb": 0.25,
    }  # fmt: skip
    with Scattered(folder, **settings) as up:
        for name, module in (("a", "dopd_prefill"), ("b", "dopd_decode")):
            of_host = {
                "engine__kv_domain": f"host-{name}", "cluster__state_dir": folder / name,
                "observability__operator_host": hosts.address("bus", name),
            }  # fmt: skip
            up.start(f"lmcache-{name}", "dopd.cli", "kv-store", prefix=hosts.inside(name), **of_host)
            up.start(name, module, "--worker-id", name, prefix=hosts.inside(name), **of_host)
        up.start("gateway", "dopd_gateway")
        async with clients_of(up, broker.url, 2, START_S, **settings) as clients:
            clients.truth, clients.vocabulary = None, VOCABULARY
            await clients.until_ready(clients.url)
            yield clients
    broker.stop()


async def linked(clients: Live, *domains: str) -> None:
    """Until the workers of these hosts, and no other, say that they reach the shared store."""
    states = clients.cluster.states
    await clients.until(
        lambda: {state.kv_domain for state in states.values() if state.kv_shared} == set(domains), 30.0, str(domains)
    )
    await asyncio.sleep(0.2)  # the gateway has heard, too


async def ask(clients: Live) -> int:
    """A request of each length, one after the other; how many tokens of KV these are in whole chunks."""
    for length in LENGTHS:
        await (await clients.ask(length, OSL)).done.wait()
    return sum(length // CHUNK * CHUNK for length in LENGTHS)


async def test_kv_crosses_between_two_hosts_and_while_it_cannot_each_request_stays_on_one(
    model: Path, tmp_path: Path
) -> None:
    with Hosts("a", "b") as hosts, RespServer(hosts.address("kv")) as store:
        async with two_hosts(model, tmp_path, hosts, f"redis://{store.host}:{store.port}") as clients:
            up: Scattered = clients.up  # type: ignore[assignment]
            state = clients.cluster.states

            def counts() -> tuple[float, int, int]:
                over = up.metric("a", "dopd_worker_segments_total", end="handed_over")
                return over, clients.kv_misses(), state["b"].kv_far_tokens

            await linked(clients, "host-a", "host-b")
            crossed = await ask(clients)
            await clients.until(lambda: counts()[2] >= crossed, 10.0, "KV of the other host")
            print(f"\nhanded over, KV misses, tokens of KV from the other host: {counts()}")
            assert counts() == (len(LENGTHS), 0, crossed)

            async with clients.closed_load(2, 300, 60):
                await asyncio.sleep(2.0)
                hosts.cut("kv", "b")
                await linked(clients, "host-a")
                await asyncio.sleep(2.0)
            before, made = counts(), [up.metric(name, "dopd_worker_output_tokens_total") for name in ("a", "b")]
            await asyncio.gather(ask(clients), ask(clients))
            assert counts() == before
            after = [up.metric(name, "dopd_worker_output_tokens_total") for name in ("a", "b")]
            assert all(late > early for early, late in zip(made, after, strict=True)), (made, after)
            print(f"after the cut: {before}; tokens made by each host: {made}, then {after}")

            hosts.mend("kv", "b")
            await linked(clients, "host-a", "host-b")
            crossed = await ask(clients)
            await clients.until(lambda: counts()[2] >= before[2] + crossed, 10.0, "KV of the other host again")
            assert counts() == (before[0] + len(LENGTHS), before[1], before[2] + crossed)
            assert clients.verdict() == []
            assert not clients.failures()
    async with running(VllmSettings(model=str(model))) as alone:
        assert await differences(clients.asked, alone) == []
