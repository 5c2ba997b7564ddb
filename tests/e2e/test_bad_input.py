"""Bad input at a real cluster: whatever it gets, on whatever subject, it goes on serving and no process dies."""

import random
from collections.abc import AsyncIterator, Iterator

import httpx
import nats
import pytest
from nats.aio.client import Client

from dopd.config import Config, load
from dopd.supervisor.stack import gateway_url
from dopd_proto.subjects import SUBJECTS
from tests import bad_http, bad_nats
from tests.contract import test_bad_http, test_bad_nats
from tests.e2e.live import demo
from tests.e2e.running import Running

pytestmark = [pytest.mark.nats, pytest.mark.slow]
EACH = 8
"""Every eighth case: the same code has all of them in tests/contract."""
PLACES = {"worker_id": "w1", "gateway_id": "g1", "kv_domain": "local"}
GARBAGE = (
    b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 50_000, random.Random("garbage").randbytes(1000),
    bad_nats.pack({"type": "Nonsense"}), bad_nats.pack(bad_nats.TEXT),
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Config]]:
    folder = tmp_path_factory.mktemp("bad")
    with demo(folder, cluster__prefill=1, cluster__decode=1) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        before = up.note()
        yield up, load(folder / "run/config.json")
        assert dict(up.state.processes()) == before, "a process has died"
        up.interrupt()
        assert up.code(60.0) == 0


@pytest.fixture
async def bus(cluster: tuple[Running, Config]) -> AsyncIterator[Client]:
    client = await nats.connect(cluster[1].cluster.broker_url)
    yield client
    await client.close()


async def test_a_bad_request_over_http_is_refused_with_its_reason(cluster: tuple[Running, Config]) -> None:
    async with httpx.AsyncClient(base_url=gateway_url(cluster[1]), timeout=60) as client:
        found = {
            case.name: text for case in bad_http.CASES[::EACH] if (text := await test_bad_http.wrong(case, client))
        }
    assert not found, "\n".join(f"{name} -> {text}" for name, text in found.items())


async def test_a_bad_payload_over_nats_is_refused_with_its_reason(bus: Client) -> None:
    found = {case.name: text for case in bad_nats.CASES[::EACH] if (text := await test_bad_nats.wrong(case, bus))}
    assert not found, "\n".join(f"{name} -> {text}" for name, text in found.items())


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.template)
async def test_garbage_on_any_subject_stops_nothing(bus: Client, subject: object) -> None:
    name = subject.at(**{place: value for place, value in PLACES.items() if f"{{{place}}}" in subject.template}).name
    for payload in GARBAGE:
        await bus.publish(name, payload)
        await bus.publish(name, payload, reply=bus.new_inbox())
    assert await test_bad_nats.serves(bus)
    assert await test_bad_nats.serves(bus, bad_nats.CHATS)
