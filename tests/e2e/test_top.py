"""`dopd top` where little is there: a broker alone, one worker that comes and goes, a broker that goes away."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopd import cli
from dopd.bus.nats_bus import NatsBus
from dopd_proto.subjects import WORKER_STATE
from dopd_proto.telemetry import WorkerState
from tests.e2e.terminal import Terminal
from tests.nats_server import NatsServer, server_binary

pytestmark = pytest.mark.nats
STATE = WorkerState(
    worker_id="w1", incarnation="w1-1", role="prefill", epoch=1, phase="serving", model="emulated", kv_domain="local",
    sent_s=0.0, lease_s=0.5,
)  # fmt: skip


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(server_binary(), tmp_path)
    server.start()
    yield server
    server.stop()


def say(url: str) -> None:
    """One heartbeat."""

    async def main() -> None:
        bus = await NatsBus.connect(url, "w1")
        bus.publish(WORKER_STATE.at(worker_id="w1"), STATE)
        await bus.drain()

    asyncio.run(main())


def test_without_a_worker_one_frame_is_an_error_that_says_so(
    broker: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["top", "--nats", broker.url, "--once", "--listen", "0.2"]) == 1
    said = capsys.readouterr()
    assert f"no worker was heard at {broker.url}" in said.err and said.out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal as Linux has it")
def test_the_live_view_shows_who_comes_and_goes_and_outlives_its_broker(broker: NatsServer) -> None:
    command = [sys.executable, "-m", "dopd.cli", "top", "--nats", broker.url, "--every", "0.1"]
    with Terminal(command, {**os.environ, "TERM": "xterm"}, lines=24, columns=100) as top:
        top.wait_for(lambda text: "no worker is heard" in text and "no planner answers" in text)
        say(broker.url)
        top.wait_for(lambda text: "1 worker: " in text)
        top.wait_for(lambda text: text.rfind("no worker is heard") > text.rfind("1 worker: "))  # its lease is over
        broker.kill()
        top.wait_for(lambda text: "the broker is out of reach" in text)
        broker.start()
        top.wait_for(lambda text: text.rfind("no worker is heard") > text.rfind("the broker is out of reach"))
        top.process.send_signal(signal.SIGINT)
        assert top.process.wait(10.0) == 0


@pytest.mark.parametrize("words", [["--listen", "soon"], ["--every", "0"], ["--once", "more"]])
def test_a_wrong_command_line_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["top", *words])
    assert caught.value.code == 2 and "usage: dopd top" in capsys.readouterr().err
