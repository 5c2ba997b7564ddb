"""What the suite of the ledger runs on: the ledger in memory on a virtual clock, and JetStream on a nats-server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from dopd.errors import LedgerLost
from dopd.ledger import Ledger
from dopd.ledger.jetstream import JetStreamLedger
from dopd.ledger.memory import MemoryStore
from dopd.runtime.virtual import run_virtual
from tests.nats_server import NatsServer

TIMEOUT_S = 2.0
"""Generous, because a busy machine must not look like a lost store."""


class LedgerRig(Protocol):
    """A store that tests may break, and a clock that they may move."""

    async def open(self) -> Ledger: ...

    def pass_time(self, seconds: float) -> None: ...

    def lost(self) -> None: ...

    def found(self) -> None: ...

    async def answers(self, ledger: Ledger) -> None: ...

    async def close(self) -> None: ...


class _Clock:
    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now(self) -> float:
        return 1000.0 + self._ahead_s

    def pass_time(self, seconds: float) -> None:
        self._ahead_s += seconds

    async def answers(self, ledger: Ledger) -> None:
        """Wait until the store is back for this ledger."""
        async with asyncio.timeout(10.0):
            while True:
                try:
                    await ledger.get("anything")
                    return
                except LedgerLost:
                    await asyncio.sleep(0.02)


class MemoryLedgerRig(_Clock):
    def __init__(self) -> None:
        super().__init__()
        self._store = MemoryStore(now=self.now)

    async def open(self) -> Ledger:
        return self._store.open(TIMEOUT_S)

    def lost(self) -> None:
        self._store.lost()

    def found(self) -> None:
        self._store.found()

    async def close(self) -> None:
        pass


class JetStreamRig(_Clock):
    def __init__(self, server: NatsServer) -> None:
        super().__init__()
        self._server = server
        self._ledgers: list[Ledger] = []

    async def open(self) -> Ledger:
        ledger = await JetStreamLedger.open(self._server.url, self, timeout_s=TIMEOUT_S)
        self._ledgers.append(ledger)
        return ledger

    def lost(self) -> None:
        self._server.kill()

    def found(self) -> None:
        self._server.start()

    async def close(self) -> None:
        for ledger in self._ledgers:
            await ledger.close()


def on_every_ledger(test: Callable[[LedgerRig], Awaitable[None]]) -> Callable[..., None]:
    """Run the test on each kind of ledger, with a loop of its own: virtual time needs a special one."""

    async def with_rig(rig: LedgerRig) -> None:
        try:
            await test(rig)
        finally:
            await rig.close()

    def run(kind: str, request: pytest.FixtureRequest) -> None:
        if kind == "memory":
            run_virtual(with_rig(MemoryLedgerRig()))
        else:
            asyncio.run(with_rig(JetStreamRig(request.getfixturevalue("nats_server"))))

    run.__doc__ = test.__doc__
    kinds = ["memory", pytest.param("jetstream", marks=pytest.mark.nats)]
    return pytest.mark.parametrize("kind", kinds)(run)
