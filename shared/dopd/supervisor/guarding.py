"""Our end of the pipe to `guard.py`, the process that ends what we leave behind, should we be killed.

Consumes process groups as they come and go; produces the lines that the guard reads.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process

from dopd.supervisor import guard


class Guard:
    """The process that ends what we leave behind, should we be killed."""

    def __init__(self) -> None:
        self._process: Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(guard.__file__)),
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line.encode())

    async def end(self) -> None:
        """Close the pipe; the guard then ends whatever is still on its list, and itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()
