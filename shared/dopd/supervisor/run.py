"""Starting stages of processes in order, watching them, stopping them in order.

Consumes stages (lists of `Spec`, each stage started when the one before is ready); produces `Supervisor`.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from itertools import groupby
from typing import Any

from dopd.errors import ConfigError, DopdError
from dopd.runtime.lifeline import hold_to_parent
from dopd.supervisor.console import Console
from dopd.supervisor.guarding import Guard
from dopd.supervisor.processes import Child
from dopd.supervisor.spec import Spec
from dopd.supervisor.state import StateDir, shown

REMIND_S = 10.0
Work = Callable[["Supervisor", Console], Coroutine[Any, Any, None]]


class Supervisor:
    """All children of this process. Not started children are not known to it."""

    def __init__(self, state: StateDir, console: Console) -> None:
        self.stop_asked = asyncio.Event()
        self._state, self._console = state, console
        self._children: list[Child] = []
        self._guard = Guard()
        self._reminding: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take signals, start the guard."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ask, number)
        await self._guard.start()
        self._reminding = loop.create_task(self._remind())

    async def start(self, *specs: Spec) -> None:
        """Start these together and wait until all are ready. Raises StartFailed."""
        children = [Child(spec, self._state, self._console, self._guard) for spec in specs]
        self._children += children
        await together(*(child.start() for child in children))

    async def start_all(self, stages: Sequence[Sequence[Spec]]) -> None:
        """Start stage after stage."""
        for stage in stages:
            await self.start(*stage)

    async def _remind(self) -> None:
        """While something takes long, say every now and then what it is."""
        while True:
            await asyncio.sleep(REMIND_S)
            names = [child.spec.name for child in self._children if child.getting_ready]
            if names and not self.stop_asked.is_set():
                self._console.event("", f"waiting for {', '.join(names)} (logs: {shown(self._state.logs)}/)", "dim")

    async def close(self) -> None:
        """Stop all, lowest rank first; then the guard, which ends what may be left."""
        if self._reminding is not None:
            self._reminding.cancel()

        def rank(child: Child) -> int:
            return child.spec.stop_rank

        for _, children in groupby(sorted(self._children, key=rank), key=rank):
            await asyncio.gather(*(child.stop() for child in children))
        await self._guard.end()

    def _ask(self, number: int) -> None:
        """The first signal asks, the second ends everything at once."""
        if self.stop_asked.is_set():
            for child in self._children:
                child.kill()
            self._console.line("killed", "bad")
            os._exit(128 + number)
        self.stop_asked.set()
        self._console.line("")
        self._console.event("", "stopping (again: at once)", "dim")


def supervise(state: StateDir, work: Work, afterwards: Callable[[], None] = lambda: None) -> int:
    """Own the folder, run `work` (which starts things and stays) until asked to stop, end everything.

    The exit code: 0 asked to stop, 1 something did not start, 2 it cannot be run so. Raises AlreadyRunning.
    """
    hold_to_parent()  # a test that is killed must not leave a cluster behind
    state.claim()
    if hasattr(os, "pidfd_open"):
        # The default watches each child in a thread; forking beside threads is what preexec_fn warns of.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    try:
        return asyncio.run(_supervised(state, work))
    finally:
        afterwards()
        state.release()


async def _supervised(state: StateDir, work: Work) -> int:
    console = Console()
    supervisor = Supervisor(state, console)
    await supervisor.open()
    working = asyncio.create_task(work(supervisor, console))
    stopping = asyncio.create_task(supervisor.stop_asked.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return 0
    except DopdError as error:
        console.line(f"dopd up: {error}", "bad")
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.wait({working})
        await supervisor.close()
        console.event("", "stopped", "dim")


async def together(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run side by side; the first error ends the others and is raised itself, in no group."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
