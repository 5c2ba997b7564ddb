"""What the suite of the bus runs on: the bus in memory (on a real and on a virtual clock) and on a nats-server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import nats
import pytest

from dopd.bus import Bus, BusFault, Delivery
from dopd.bus.common import DEFAULT_MAX_PENDING
from dopd.bus.memory import MemoryBroker
from dopd.bus.nats_bus import NatsBus
from dopd.runtime.virtual import run_virtual
from dopd_proto.base import Message
from tests.nats_server import MAX_PAYLOAD, NatsServer


class Rig(Protocol):
    """A broker that tests may break."""

    max_pending: int

    async def connect(self, name: str) -> Bus: ...

    async def inject(self, subject: str, payload: bytes, reply_to: str = "") -> None: ...

    async def down(self) -> None: ...

    async def up(self) -> None: ...

    async def close(self) -> None: ...


class MemoryRig:
    max_pending = DEFAULT_MAX_PENDING

    def __init__(self, latency_s: float = 0.0) -> None:
        self._latency_s = latency_s
        self._broker: MemoryBroker | None = None

    async def connect(self, name: str) -> Bus:
        return self._running().connect(name)

    async def inject(self, subject: str, payload: bytes, reply_to: str = "") -> None:
        self._running().inject(subject, payload, reply_to)

    async def down(self) -> None:
        self._running().down()

    async def up(self) -> None:
        self._running().up()

    async def close(self) -> None:
        for bus in list(self._running().buses):
            await bus.drain()

    def _running(self) -> MemoryBroker:
        if self._broker is None:
            self._broker = MemoryBroker(self._latency_s, max_payload=MAX_PAYLOAD, max_pending=self.max_pending)
        return self._broker


class NatsRig:
    max_pending = DEFAULT_MAX_PENDING

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._buses: list[NatsBus] = []

    async def connect(self, name: str) -> Bus:
        bus = await NatsBus.connect(self._server.url, name, max_pending=self.max_pending, reconnect_wait_s=0.02)
        self._buses.append(bus)
        return bus

    async def inject(self, subject: str, payload: bytes, reply_to: str = "") -> None:
        client = await nats.connect(self._server.url)
        await client.publish(subject, payload, reply_to)
        await client.close()

    async def down(self) -> None:
        self._server.kill()
        await until(lambda: not any(bus.connected for bus in self._buses))

    async def up(self) -> None:
        self._server.start()
        await until(lambda: all(bus.connected for bus in self._buses))

    async def close(self) -> None:
        for bus in self._buses:
            await bus.drain(1.0)


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - there is no event for most of what is waited for
            await asyncio.sleep(0.002)


class Taker:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.subjects: list[str] = []

    def __call__(self, delivery: Delivery[Message]) -> None:
        self.messages.append(delivery.message)
        self.subjects.append(delivery.subject)

    async def count(self, number: int) -> None:
        await until(lambda: len(self.messages) >= number)


def faults_of(bus: Bus) -> list[BusFault]:
    """A list that the bus's faults go to."""
    faults: list[BusFault] = []
    bus.on_fault(faults.append)
    return faults


def on_every_bus(test: Callable[[Rig], Awaitable[None]]) -> Callable[..., None]:
    """Run the test on each kind of bus, with a loop of its own: virtual time needs a special one."""

    async def with_rig(rig: Rig) -> None:
        try:
            await test(rig)
        finally:
            await rig.close()

    def run(kind: str, request: pytest.FixtureRequest) -> None:
        if kind == "virtual":
            run_virtual(with_rig(MemoryRig(latency_s=0.001)))
        elif kind == "memory":
            asyncio.run(with_rig(MemoryRig()))
        else:
            asyncio.run(with_rig(NatsRig(request.getfixturevalue("nats_server"))))

    run.__doc__ = test.__doc__
    kinds = ["memory", "virtual", pytest.param("nats", marks=pytest.mark.nats)]
    return pytest.mark.parametrize("kind", kinds)(run)
