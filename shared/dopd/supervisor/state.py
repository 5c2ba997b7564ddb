"""The folder `.dopd/`: who runs (a lock and pid files), what it was told (config.json), what it wrote (logs).

Consumes a path; produces `StateDir`. A pid file holds the pid *and* the start time of its process: a pid alone may
belong to somebody else by the time it is read.
"""

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dopd.errors import ConfigError, DopdError

SUPERVISOR = "supervisor"
LOG_LIMIT_BYTES = 10_000_000


class AlreadyRunning(DopdError):
    """Another supervisor holds this state folder."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine, told apart from a later one with the same pid."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return started(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Signal the process if it is still this one."""
        with suppress(ProcessLookupError):
            if self.alive():
                os.kill(self.pid, number)


def started(pid: int) -> str:
    """When the process started, in whatever unit the system has; empty when it is gone or a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        with suppress(OSError):
            # The name is in brackets and may hold anything: count fields from its end.
            fields = stat.read_text().rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else fields[19]
        return ""
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, since = shown.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else since.strip()


def shown(path: Path) -> Path:
    """The path as a person types it: relative where it lies below the present folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class StateDir:
    """`.dopd/` and what lies in it."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run, self.logs, self.jetstream = self.root / "run", self.root / "logs", self.root / "jetstream"
        self.config_file = self.run / "config.json"
        self._lock: int | None = None

    def claim(self) -> None:
        """Make this process the one supervisor. The kernel takes the lock back however we die.

        Raises AlreadyRunning, or ConfigError when the folder cannot be made.
        """
        try:
            for folder in (self.run, self.logs, self.jetstream):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(str(self.root), "cluster.state_dir", f"{error.strerror}; name another folder") from error
        lock = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            other = self.process(SUPERVISOR)
            raise AlreadyRunning(
                f"dopd is already running here (pid {other.pid if other else '?'}, state in {self.root}); "
                "`dopd down` stops it, `dopd roles` shows it"
            ) from None
        self._lock = lock
        for pattern in ("*.pid", "*.ports", "*.ready", "*.operator"):
            for stale in self.run.glob(pattern):
                stale.unlink()
        self.write_pid(SUPERVISOR, os.getpid())

    def release(self) -> None:
        """Give the folder back."""
        self.remove_pid(SUPERVISOR)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_pid(self, name: str, pid: int) -> None:
        """Remember a process. The file appears whole or not at all."""
        whole = self.run / f".{name}.pid"
        whole.write_bytes(msgspec.json.encode(Process(pid, started(pid))))
        whole.replace(self.run / f"{name}.pid")

    def remove_pid(self, name: str) -> None:
        """Forget a process."""
        (self.run / f"{name}.pid").unlink(missing_ok=True)

    def process(self, name: str) -> Process | None:
        """The process of that name if it is alive, and the one that wrote the file."""
        with suppress(OSError, msgspec.MsgspecError):
            process = msgspec.json.decode((self.run / f"{name}.pid").read_bytes(), type=Process)
            return process if process.alive() else None
        return None

    def processes(self) -> Iterator[tuple[str, Process]]:
        """All living processes of this folder, the supervisor too."""
        for file in sorted(self.run.glob("*.pid")):
            if not file.name.startswith(".") and (process := self.process(file.stem)):
                yield file.stem, process

    def operator_file(self, name: str) -> Path:
        """Where a service says where its operator port is."""
        return self.run / f"{name}.operator"

    def operator_url(self, name: str) -> str:
        """What it said; empty for a process that has none."""
        with suppress(OSError):
            return self.operator_file(name).read_text()
        return ""

    def page_url(self) -> str:
        """Where a browser sees the cluster; empty while no gateway runs."""
        url = self.operator_url("gateway") if self.process("gateway") else ""
        return f"{url}/" if url else ""

    def log_file(self, name: str) -> Path:
        """Where the process's output is appended; a long one is moved aside first."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path

    @property
    def shared_memory_name(self) -> str:
        """The same for each run in one folder, so that a store which was killed leaves no second segment."""
        return f"dopd-{self.root.stat().st_ino:x}"

    def free_shared_memory(self) -> None:
        """A KV store that was killed leaves its segment behind, and memory with it."""
        with suppress(OSError):
            for segment in Path("/dev/shm").glob(f"*{self.shared_memory_name}"):
                segment.unlink()

    def wipe(self) -> None:
        """Remove everything."""
        self.free_shared_memory()
        shutil.rmtree(self.root)
