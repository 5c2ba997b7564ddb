"""A cluster whose processes are started one by one, as on several hosts, each with settings of its own.

Consumes settings as `SECTION__KEY`; produces the processes, their metrics and logs, and connected `Live` clients.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType

import httpx

from dopd import config as configs
from dopd.bus.nats_bus import NatsBus
from dopd.runtime.lifeline import PARENT_VARIABLE
from dopd.supervisor.state import Process, started
from tests.e2e.live import Live
from tests.e2e.running import ROOT
from tests.nats_server import die_with_parent

START_S = 60.0


class Scattered:
    """`with Scattered(folder, **settings) as up:`; all processes end with the block. `settings` are those of all."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.settings = folder, settings
        self.urls: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.state = SimpleNamespace(logs=folder, process=self._process)  # what `Live` asks a supervisor for
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *command: str, prefix: tuple[str, ...] = (), **settings: object) -> None:
        """`python -m COMMAND`, `prefix` before it, which takes its time. A name may be started again."""
        named = {f"DOPD__{key.upper()}": str(value) for key, value in (self.settings | settings).items()}
        ready, operator = self.folder / f"{name}.ready", self.folder / f"{name}.operator"
        ready.unlink(missing_ok=True)
        files = {"DOPD_READY_FILE": str(ready), "DOPD_OPERATOR_FILE": str(operator)}
        self.spawn(
            name, [*prefix, sys.executable, "-m", *command], **named, **files, **{PARENT_VARIABLE: str(os.getpid())}
        )

    def spawn(self, name: str, command: list[str], **env: str) -> None:
        """Any command."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **env}, stdout=log, stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, no locks
            )  # fmt: skip

    def dead(self) -> str:
        """The name and the log of a process that has ended by itself; empty when there is none."""
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        return "\n".join(f"{name}: {self.log(name)}" for name in ended)

    def send(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL, awaited."""
        self.send(name, signal.SIGKILL)
        self._processes.pop(name).wait(10.0)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def metric(self, name: str, metric: str, **labels: str) -> float:
        """The sum of a process' samples of a metric that have these labels."""
        page = httpx.get((self.folder / f"{name}.operator").read_text() + "/metrics", timeout=10.0).text
        found = re.findall(rf"^{metric}(?:{{(.*)}})? (\S+)$", page, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for has, value in found if all(label in has for label in wanted))

    def _process(self, name: str) -> Process | None:
        process = self._processes.get(name)
        return Process(process.pid, started(process.pid)) if process is not None else None

    def __enter__(self) -> "Scattered":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last one started ends first. None may outlive its time to end."""
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10.0)


@asynccontextmanager
async def clients_of(
    up: Scattered, nats_url: str, workers: int, start_s: float = START_S, **settings: object
) -> AsyncIterator[Live]:
    """Clients of a cluster, once so many workers serve."""
    named = {f"DOPD__{key.upper()}": str(value) for key, value in settings.items()}
    bus = await NatsBus.connect(nats_url, name="test")
    try:
        clients = Live(up, bus, configs.load(env=named))  # type: ignore[arg-type]
        await clients.cluster.follow(bus)
        states = clients.cluster.states

        def serve() -> bool:
            assert not up.dead(), up.dead()
            return len(states) == workers and all(state.phase == "serving" for state in states.values())

        await clients.until(serve, start_s, f"{workers} workers serve")
        yield clients
    finally:
        await bus.drain(timeout_s=1.0)
