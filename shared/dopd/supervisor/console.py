"""What `dopd up` tells the person at the terminal: one line per thing that happened, with the seconds since start.

Consumes events; produces lines on stdout, in colour on a terminal.
"""

import asyncio
import sys
from contextlib import suppress

_COLOURS = {"good": "32", "bad": "31", "dim": "2", "bold": "1"}


class Console:
    """Progress lines. Made inside of a running event loop, whose clock it counts by."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._colour = sys.stdout.isatty()

    @property
    def elapsed_s(self) -> float:
        """Seconds since start."""
        return self._loop.time() - self._began_s

    def line(self, text: str = "", style: str = "") -> None:
        """A line as it stands."""
        if style and self._colour:
            text = f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"
        with suppress(OSError):  # the terminal may be gone; stopping goes on without it
            print(text, flush=True)

    def event(self, name: str, what: str, style: str = "") -> None:
        """Something happened to a process."""
        self.line(f"{self.elapsed_s:7.1f} s  {name:<11} {what}", style)
