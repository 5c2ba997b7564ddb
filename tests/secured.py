"""A broker as `deploy/nats` configures it, with users and with or without TLS, and services that run under them.

Consumes the shipped files, unchanged: ports and addresses are given on the command line. Produces `SecuredBroker`, and
`services`, an emulated cluster of processes of which each has its own user.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from dopd.bus.permissions import USERS, password_variable
from dopd.runtime.lifeline import PARENT_VARIABLE
from dopd.runtime.main import OPERATOR_VARIABLE, READY_VARIABLE
from dopd.supervisor.ports import this_or_free
from tests.nats_server import NatsServer, server_binary

ROOT = Path(__file__).parents[1]
NATS = ROOT / "deploy/nats"
READY_S = 60.0
STOP_S = 15.0

SERVICES = {
    "kv-store": ("kv-store", "dopd.engine.sim.store"),
    "forecaster": ("forecaster", "dopd_forecaster"),
    "gateway": ("gateway", "dopd_gateway"),
    "w1": ("worker", "dopd_prefill", "--worker-id", "w1"),
    "w2": ("worker", "dopd_decode", "--worker-id", "w2"),
    "w3": ("worker", "dopd_decode", "--worker-id", "w3"),
    "planner": ("planner", "dopd_planner"),
}
"""Each process of the cluster: its user, its module and its arguments."""


class SecuredBroker(NatsServer):
    """A server with the shipped `server.conf`, or another file beside it."""

    def __init__(self, folder: Path, config: Path = NATS / "server.conf", host: str = "127.0.0.1") -> None:
        super().__init__(server_binary(), folder)
        self._config, self._host = config, host
        self.passwords = {user: f"p{secrets.token_hex(12)}" for user in USERS}
        self.env = {password_variable(user): password for user, password in self.passwords.items()}
        self.env["DOPD_NATS_STORE_DIR"] = str(folder / "js")

    def url_of(self, user: str, password: str | None = None) -> str:
        """The address for a user."""
        scheme, _, place = self.url.partition("://")
        return f"{scheme}://{user}:{self.passwords[user] if password is None else password}@{place}"

    @property
    def violations(self) -> list[str]:
        """Lines of the log that tell of something that was refused."""
        return [line for line in self.log.splitlines() if "iolation" in line or "authentication error" in line]

    def _command(self, port: int) -> list[str]:
        where = ["-a", self._host, "-p", str(port), "-m", "-1"]
        return [str(self._binary), "-c", str(self._config), *where, "--ports_file_dir", str(self._folder)]


def make_certificates(folder: Path) -> Path:
    """A development CA and a broker's certificate, by the shipped script; the CA's file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing (Debian: apt-get install openssl)")
    subprocess.run([NATS / "dev-ca.sh", folder], check=True, capture_output=True, timeout=30)
    return folder / "ca.crt"


def tls_broker(folder: Path, certificates: Path, host: str = "127.0.0.1") -> SecuredBroker:
    """A server with the shipped `tls.conf`, not started."""
    broker = SecuredBroker(folder, NATS / "tls.conf", host)
    broker.env["DOPD_NATS_TLS_CERT"] = str(certificates / "server.crt")
    broker.env["DOPD_NATS_TLS_KEY"] = str(certificates / "server.key")
    return broker


class Services:
    """Running processes by name; what they write lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.http_port = folder, this_or_free("127.0.0.1", 0)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.folder / f"{name}.log").read_text()

    def operator_url(self, name: str) -> str:
        """Where its operator port is."""
        return (self.folder / f"{name}.operator").read_text()

    def start(self, broker: SecuredBroker, env: Mapping[str, str]) -> None:
        """All of SERVICES; returns once they are connected."""
        for name, (user, *command) in SERVICES.items():
            ours = {
                "DOPD__CLUSTER__NATS_URL": broker.url_of(user),
                "DOPD__ENGINE__KIND": "sim",
                "DOPD__POLICY__NAME": "simple",
                "DOPD__GATEWAY__PORT": str(self.http_port),
                PARENT_VARIABLE: str(os.getpid()),
                READY_VARIABLE: str(self.folder / f"{name}.ready"),
                OPERATOR_VARIABLE: str(self.folder / f"{name}.operator"),
            }
            with (self.folder / f"{name}.log").open("wb") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *command], stdout=log, stderr=log, env={**os.environ, **ours, **env}
                )
        end = time.monotonic() + READY_S
        for name, process in self.processes.items():
            while not (self.folder / f"{name}.ready").exists():
                assert process.poll() is None, self.log(name)
                assert time.monotonic() < end, f"{name} is not ready: {self.log(name)}"
                time.sleep(0.02)

    def stop(self) -> None:
        """Ask all to end; those that do not in time are killed."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)


@contextmanager
def services(folder: Path, broker: SecuredBroker, env: Mapping[str, str]) -> Iterator[Services]:
    """All of SERVICES, each under its user; `env` is for all of them."""
    folder.mkdir()
    running = Services(folder)
    try:
        running.start(broker, env)
        yield running
    finally:
        running.stop()
