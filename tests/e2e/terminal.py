"""A program in a terminal of its own: what it writes, and terminals that change their size."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType

from tests.e2e.running import ROOT, wait_until


class Terminal:
    """`with Terminal(command, env, lines, columns) as top:`; the program ends with the block."""

    def __init__(self, command: list[str], env: Mapping[str, str], lines: int, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        self._set_size(lines, columns)
        sizes = {"LINES", "COLUMNS"}  # they would win over the terminal's own
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
            env={key: value for key, value in env.items() if key not in sizes}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that was written so far, control sequences too."""
        return b"".join(self._parts).decode(errors="replace")

    def wait_for(self, what: Callable[[str], bool]) -> None:
        """Until it is true of what was written."""
        assert wait_until(lambda: what(self.text), 20.0), self.text[-3000:]

    def resize(self, lines: int, columns: int) -> None:
        """As when a person pulls the window."""
        self._set_size(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def _set_size(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        with suppress(OSError):  # how Linux says that the other side has gone
            while part := os.read(self._ours, 65536):
                self._parts.append(part)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5.0)
        os.close(self._ours)
