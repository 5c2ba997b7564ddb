"""Two gateways of one cluster: they share the workers by credit, and one goes on with all of it when the other dies.

A gateway that dies takes its requests with it; that its clients see so, and nobody else, is `test_live_chaos.py`'s.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from dopd_proto.subjects import WORKER_STATE
from dopd_proto.telemetry import WorkerState
from tests.e2e.live import Live
from tests.e2e.scattered import Scattered, clients_of
from tests.nats_server import NatsServer, quiet_port, server_binary

pytestmark = [pytest.mark.nats, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120)]
ISL, OSL, LONG, CAPACITY, CLIENTS = 300, 30, 1500, 8, 20
GATEWAYS = ("g1", "g2")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scattered]:
    folder = tmp_path_factory.mktemp("gateways")
    broker = NatsServer(server_binary(), folder)
    broker.start()
    # No more than this at once on a worker: clients are more, so that gateways compete for it.
    settings = {
        "cluster__nats_url": broker.url, "policy__name": "simple", "engine__kind": "sim",
        "engine__profile": "a100-qwen2.5-14b-bf16-tp1", "worker__max_requests": CAPACITY,
    }  # fmt: skip
    with Scattered(folder, **settings) as running:
        running.start("store", "dopd.engine.sim.store")
        for name in GATEWAYS:
            port = quiet_port()
            running.urls[name] = f"http://127.0.0.1:{port}"
            running.start(name, "dopd_gateway", "--gateway-id", name, gateway__port=port)
        for name, module in (("w1", "dopd_prefill"), ("w2", "dopd_decode"), ("w3", "dopd_decode")):
            running.start(name, module, "--worker-id", name)
        yield running
    broker.stop()


@pytest.fixture
async def clients(up: Scattered) -> AsyncIterator[Live]:
    async with clients_of(up, str(up.settings["cluster__nats_url"]), 3, **up.settings) as connected:
        for url in up.urls.values():
            await connected.until_ready(url)
        yield connected


class Watch:
    """What all states said meanwhile: of each worker the most in hand, and what broke the rules of credit.

    A gateway sends no more than it was ever granted, and what is granted now is free now. Work that is on its way
    by an older window comes on top of it, half of the capacity where two share it.
    """

    def __init__(self) -> None:
        self.most_held: dict[str, int] = {}
        self.over: list[str] = []
        self._limits: dict[tuple[str, str], int] = {}

    def saw(self, state: WorkerState) -> None:
        held = state.running + state.waiting
        self.most_held[state.worker_id] = max(self.most_held.get(state.worker_id, 0), held)
        for grant in state.grants:
            key = (state.worker_id, grant.gateway_incarnation)
            if grant.received > self._limits.get(key, grant.received):
                self.over.append(f"{grant} of {state.worker_id}, {self._limits[key]} granted before")
            self._limits[key] = max(grant.limit, self._limits.get(key, 0))
        free = sum(grant.limit - grant.received for grant in state.grants)
        if (free and held + free > CAPACITY) or held > CAPACITY * 3 // 2:
            self.over.append(f"{state.worker_id}: {held} in hand and {free} granted")


def all_of_it(state: WorkerState) -> bool:
    """Whether what this worker can take is in hand or granted, none of it to a gateway that is gone."""
    free = sum(grant.limit - grant.received for grant in state.grants)
    return len(state.grants) == 1 and state.running + state.waiting + free >= CAPACITY


async def asking(clients: Live, url: str, going: asyncio.Event, done: list[int]) -> None:
    """Clients of one gateway, each with one request at a time; `done` counts the requests that have ended."""

    async def one() -> None:
        while not going.is_set():
            asked = await clients.ask_http(ISL, OSL, url=url, timeout_s=30.0)
            await asked.done.wait()
            done.append(len(asked.tokens))
            if asked.broken:
                return

    await asyncio.gather(*(one() for _ in range(CLIENTS)))


async def test_two_gateways_share_the_workers_alike_and_one_takes_all_when_the_other_dies(
    up: Scattered, clients: Live
) -> None:
    watch, stop, done = Watch(), asyncio.Event(), {name: list[int]() for name in GATEWAYS}
    await clients.bus.subscribe(WORKER_STATE.at(), lambda delivery: watch.saw(delivery.message))
    await clients.until(lambda: len(watch.most_held) == 3, 10.0, "what is granted to idle gateways has been seen")
    loads = {name: asyncio.create_task(asking(clients, up.urls[name], stop, done[name])) for name in GATEWAYS}
    await asyncio.sleep(5.0)
    shares = {name: len(done[name]) for name in GATEWAYS}
    print(f"\nserved {shares}, most in hand {watch.most_held}")
    assert watch.over == []
    assert max(watch.most_held.values()) >= CAPACITY  # or nobody had to share
    assert min(shares.values()) >= max(shares.values()) / 2

    long = [await clients.ask_http(ISL, LONG, url=up.urls["g2"]) for _ in range(2)]
    await clients.until(lambda: all(asked.tokens for asked in long), 20.0, "long answers have begun")
    up.kill("g2")
    await loads["g2"]  # its clients see the connection end
    broken = [asked for asked in clients.asked if asked.broken]
    assert len(broken) == CLIENTS + len(long) and all(asked.broken for asked in long)
    granted = lambda: {g.gateway_id for s in clients.cluster.states.values() for g in s.grants}  # noqa: E731
    await clients.until(lambda: granted() == {"g1"}, 10.0, "workers give the dead gateway up")
    await clients.until(lambda: all(map(all_of_it, clients.cluster.states.values())), 10.0, "the other has all of them")
    stop.set()
    await loads["g1"]
    assert watch.over == []
    assert clients.verdict() == []
    assert not clients.failures()
    await clients.idle(10.0)  # what the dead gateway had under way is gone from every engine
    assert sum(up.metric(name, "dopd_worker_segments_total", end="aborted") for name in ("w1", "w2", "w3")) >= len(long)
