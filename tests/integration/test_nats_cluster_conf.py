"""The shipped example of a broker cluster: three servers that run it find each other."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import nats
import pytest

from dopd.bus.permissions import USERS, password_variable
from dopd.errors import LedgerLost
from dopd.ledger.jetstream import JetStreamLedger
from dopd.runtime.clock import RealRuntime
from tests.nats_server import NatsServer, die_with_parent, nats_server, quiet_port, server_binary

__all__ = ["nats_server"]
pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]
SHIPPED = Path(__file__).parents[2] / "deploy/nats"
T = TypeVar("T")
NAMES = ("host-1", "host-2", "host-3")


def on_loopback(folder: Path, client_port: int, route_port: int) -> Path:
    """The example as three of it can run on one machine: other ports, and nothing else changed."""
    shutil.copytree(SHIPPED, folder)
    ports = {"4222": client_port, "8222": quiet_port(), "6222": route_port}
    for name in ("server.conf", "cluster.conf.example"):
        text = (folder / name).read_text()
        for port, other in ports.items():
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{other}")
        (folder / name).write_text(text)
    return folder / "cluster.conf.example"


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL of all three, and the first one."""
    clients, routes = ({name: quiet_port() for name in NAMES} for _ in range(2))
    urls = ", ".join(f'"nats://route:between@127.0.0.1:{port}"' for port in routes.values())
    common = {password_variable(user): f"of-{user}" for user in USERS}
    common |= {"DOPD_NATS_ROUTE_PASSWORD": "between", "DOPD_NATS_ROUTES": f"[{urls}]"}
    running = []
    for name in NAMES:
        command = [server_binary(), "-c", on_loopback(tmp_path / name, clients[name], routes[name])]
        env = {**os.environ, **common, "DOPD_NATS_NAME": name, "DOPD_NATS_STORE_DIR": str(tmp_path / name / "js")}
        with (tmp_path / f"{name}.log").open("wb") as log:
            running.append(subprocess.Popen(
                command, env=env, stdout=log, stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, no locks
            ))  # fmt: skip
    first, *others = (f"127.0.0.1:{port}" for port in clients.values())
    yield ",".join([f"nats://planner:of-planner@{first}", *(f"nats://{each}" for each in others)]), running[0]
    for process in running:
        process.kill()
        process.wait(10.0)


async def until_kept(call: Callable[[], Awaitable[T]]) -> T:
    """The ledger's answer, as soon as the brokers have elected who leads."""
    for _ in range(20):
        with suppress(LedgerLost):
            return await call()
        await asyncio.sleep(0.1)
    raise AssertionError("no ledger within 20 tries")


async def test_three_brokers_with_the_example_are_one_and_keep_a_ledger(
    brokers: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, first = brokers
    ledger = await until_kept(lambda: JetStreamLedger.open(url, RealRuntime()))
    try:
        await until_kept(lambda: ledger.append("decisions", b"kept three times"))
        first.kill()
        entries = await until_kept(lambda: ledger.read("decisions"))
        assert entries[0].payload == b"kept three times"
    finally:
        await ledger.close()


async def test_a_ledger_that_was_made_with_other_settings_is_used_as_it_is(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that was begun before there were three brokers."""
    client = await nats.connect(nats_server.url)
    await client.jetstream().add_stream(name="dopd_log_decisions", subjects=["dopd.ledger.decisions"], max_msgs=7)
    await client.jetstream().create_key_value(bucket="dopd_ledger", history=3)
    await client.close()
    ledger = await JetStreamLedger.open(nats_server.url, RealRuntime())
    try:
        assert await ledger.append("decisions", b"one") == 1
        revision = await ledger.put("pins", b"two", 0)
        assert await ledger.get("pins") == (b"two", revision)
    finally:
        await ledger.close()
    assert [record.message.count("used as it is") for record in caplog.records] == [1, 1]
