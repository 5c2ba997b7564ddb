"""When a process is ready: by what it says itself, on the bus, over HTTP, or in its ready file.

Consumes an address each; produces probes, asked again and again by `processes.Child`. `Cluster` follows the workers'
own states, for readiness and for the demo's status line.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

from dopd.bus import Bus, Delivery
from dopd.supervisor.http import get
from dopd.supervisor.spec import Probe
from dopd_proto.subjects import WORKER_STATE
from dopd_proto.telemetry import WorkerState


def http_ok(url: str) -> Probe:
    """Ready when a GET says 200."""

    async def probe() -> bool:
        return (await get(url))[0] == 200

    return probe


def speaks(host: str, port: int, greeting: bytes = b"") -> Probe:
    """Ready when the port takes a connection and greets with these bytes (NATS: `INFO`)."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    return await reader.readexactly(len(greeting)) == greeting
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError):
            return False

    return probe


def file_appears(path: Path) -> Probe:
    """Ready when the process has written its ready file. An old one is taken away now, and when it was seen."""
    path.unlink(missing_ok=True)

    def seen() -> bool:
        # One step: looking first and removing then would lose a file that comes between.
        with suppress(FileNotFoundError):
            path.unlink()  # a restarted process has to say it anew
            return True
        return False

    async def probe() -> bool:
        return seen()

    return probe


class Cluster:
    """The newest state of each worker."""

    def __init__(self) -> None:
        self.states: dict[str, WorkerState] = {}

    async def follow(self, bus: Bus) -> None:
        """Subscribe to all workers."""
        await bus.subscribe(WORKER_STATE.at(), self._take)

    def _take(self, delivery: Delivery[WorkerState]) -> None:
        state = delivery.message
        self.states[state.worker_id] = state

    def serving(self, worker_id: str) -> Probe:
        """Ready when the worker says that it serves, in an incarnation that was not seen serving before."""
        seen = ""

        async def probe() -> bool:
            nonlocal seen
            state = self.states.get(worker_id)
            if state is None or state.phase != "serving" or state.incarnation == seen:
                return False
            seen = state.incarnation
            return True

        return probe
