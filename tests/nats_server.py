"""A nats-server for tests: random ports, its own store, and faults (kill, freeze, restart on the same port)."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dopd.bus.server import (
    RANDOM_PORT,
    ServerAddresses,
    find_nats_server,
    nats_command,
    nats_config,
    read_addresses,
)
from dopd.errors import ConfigError
from dopd.supervisor.ports import is_free

START_S = 10.0
MAX_PAYLOAD = 256 * 1024
_PR_SET_PDEATHSIG = 1


class NatsServer:
    """One server process at a time; `url` stays the same over restarts."""

    def __init__(self, binary: Path, folder: Path, max_payload: int = MAX_PAYLOAD) -> None:
        self._binary, self._folder, self.max_payload = binary, folder, max_payload
        self._process: subprocess.Popen[bytes] | None = None
        self._addresses: ServerAddresses | None = None
        self.env: dict[str, str] = {}

    @property
    def url(self) -> str:
        assert self._addresses is not None, "start() first"
        return self._addresses.url

    def start(self) -> None:
        port = RANDOM_PORT if self._addresses is None else urlsplit(self._addresses.url).port
        assert port is not None
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(port),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, no locks
            )
        self._addresses = self._await_addresses()

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self._folder / "nats.log").read_text()

    def _command(self, port: int) -> list[str]:
        config = self._folder / "nats.conf"
        config.write_text(nats_config(self._folder / "js", port=port, max_payload=self.max_payload))
        return nats_command(self._binary, config, self._folder)

    def stop(self) -> None:
        """An orderly end; nothing happens when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It holds its connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # It may still answer until all of its threads have stopped.
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Killed, and back on the same port with the same store."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)
        self._process = None

    def _await_addresses(self) -> ServerAddresses:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            addresses = read_addresses(self._folder, self._process.pid)
            if addresses is not None:
                return addresses
            time.sleep(0.005)
        self.kill()
        raise RuntimeError(f"nats-server did not start: {self.log[-2000:]}")


def die_with_parent() -> None:
    """The server must not outlive a test process that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def quiet_port() -> int:
    """A free port of loopback, none of those that the system gives to connections: it is free a moment later, too."""
    rng = random.Random(os.urandom(8))
    return next(port for port in iter(lambda: rng.randrange(20_000, 32_000), 0) if is_free("127.0.0.1", port))


def server_binary() -> Path:
    """Fails in CI where there is none, for there the tests must run; skips elsewhere."""
    try:
        return find_nats_server()
    except ConfigError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that runs. Import this fixture into the conftest of the folder that uses it."""
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(server_binary(), folder)
    server.start()
    yield server
    server.stop()
