"""A supervisor under test: its output as it comes, and whether anything of it is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from dopd.runtime.lifeline import PARENT_VARIABLE
from dopd.supervisor.state import Process, StateDir, started

ROOT = Path(__file__).parents[2]


def wait_until(what: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Running:
    """`with Running(command, folder) as up:`; the process and its children end with the block."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.state = StateDir(folder)
        self._seen: dict[int, Process] = {}
        self._text: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {}), PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(OSError):  # a test may close the pipe
            for line in self.process.stdout:
                self._text.append(line)

    @property
    def output(self) -> str:
        return "".join(self._text)

    @property
    def events(self) -> list[str]:
        """What the stand-ins wrote."""
        file = self.state.root / "events"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, text: str, limit_s: float = 20.0) -> None:
        """Until the text was printed."""
        assert wait_until(lambda: text in self.output or self.process.poll() is not None, limit_s), self.output
        assert wait_until(lambda: text in self.output, 1.0), self.output

    def note(self) -> dict[str, Process]:
        """Remember all that runs now, children of children too; returns the processes by name."""
        named = dict(self.state.processes())
        for pid in [process.pid for process in named.values()]:
            for member in _members_of(pid):
                self._seen[member] = Process(member, started(member))
        return named

    def left(self) -> list[int]:
        """Which of the noted processes are still there."""
        return [process.pid for process in self._seen.values() if process.alive()]

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def code(self, limit_s: float = 20.0) -> int:
        """The exit code, awaited; all output is there afterwards."""
        code = self.process.wait(limit_s)
        self._reader.join(5.0)
        return code

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.left():
            Process(pid, started(pid)).send(signal.SIGKILL)


def _members_of(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            members.append(int(entry.parent.name))
    return [*members, leader]
