"""The process entry of services: signals, exit codes, one report per crash, death with the parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import ROOT, wait_until
from tests.nats_server import NatsServer, server_binary

pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = NatsServer(server_binary(), tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.url
    server.stop()


class Service:
    """One process, its output in a file."""

    def __init__(self, folder: Path, url: str, *words: str, **env: str) -> None:
        self.log = folder / "log"
        environment = {**os.environ, "DOPD__CLUSTER__NATS_URL": url, "DOPD_READY_FILE": str(folder / "ready"), **env}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.odd_service", *words], stderr=log, cwd=ROOT, env=environment
            )

    def until(self, text: str) -> None:
        assert wait_until(lambda: text in self.log.read_text(), 10.0), self.log.read_text()

    def code(self) -> int:
        return self.process.wait(10.0)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_service_to_stop_and_the_exit_code_is_0(
    broker: str, tmp_path: Path, number: signal.Signals
) -> None:
    service = Service(tmp_path, broker, "serve")
    service.until("serving")
    assert (tmp_path / "ready").exists()
    service.process.send_signal(number)
    assert service.code() == 0
    assert service.events() == ["service_started", "service_stopped"]


def test_a_second_signal_ends_it_at_once(broker: str, tmp_path: Path) -> None:
    service = Service(tmp_path, broker, "deaf")
    service.until("serving")
    service.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        service.process.wait(0.3)
    service.process.send_signal(signal.SIGTERM)
    assert service.code() == 128 + signal.SIGTERM


def test_a_crash_is_reported_once_with_its_traceback_and_exit_code_1(broker: str, tmp_path: Path) -> None:
    service = Service(tmp_path, broker, "crash", "--worker-id", "w7")
    assert service.code() == 1
    assert service.events() == ["service_started", "service_crashed"]
    assert service.log.read_text().count("ValueError: out of luck") == 1
    assert '"service": "w7"' in service.log.read_text()


def test_an_error_that_we_raise_on_purpose_is_told_without_a_traceback(broker: str, tmp_path: Path) -> None:
    service = Service(tmp_path, broker, "fail")
    assert service.code() == 1
    assert "no engine here" in service.log.read_text()
    assert "Traceback" not in service.log.read_text()


def test_without_a_broker_it_says_so_and_exits_with_1(tmp_path: Path) -> None:
    service = Service(tmp_path, "nats://127.0.0.1:1", "serve")
    assert service.code() == 1
    assert "no broker at nats://127.0.0.1:1" in service.log.read_text()


def test_a_wrong_config_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    service = Service(tmp_path, "nats://127.0.0.1:1", "serve", DOPD__SLO__TTFTS="1")
    assert service.code() == 2
    assert service.log.read_text().count("\n") == 1


def test_it_does_not_start_when_the_parent_that_it_belongs_to_is_gone(tmp_path: Path) -> None:
    service = Service(tmp_path, "nats://127.0.0.1:1", "serve", DOPD_PARENT_PID=str(2**22 + 1))
    assert service.code() == 128 + signal.SIGKILL
