"""What the bus costs above raw nats-py: publish → callback, 150-byte messages, interleaved rounds, and as ratios.

Measures and asserts nothing about time. Run: `make bench`, or `python -m pytest -s tests/bench/bench_bus.py`.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from dopd.bus import Bus, Delivery
from dopd.bus.memory import MemoryBroker
from dopd.bus.nats_bus import NatsBus
from dopd_proto import subjects
from dopd_proto.codec import encode
from dopd_proto.request import Run, TokenBatch
from tests.nats_server import NatsServer, server_binary

COUNT = 50_000
CHUNK = 500
ROUNDS = 5
ROUND_LIMIT_S = 60.0
TO = subjects.TOKENS.at(gateway_id="g1", worker_id="w1")
RUN = Run(request_id="r-123456789abc", attempt=1, index=7, tokens=b"\0" * 4, times_s=(1.5,))
BATCH = TokenBatch(worker_id="w1", incarnation="i-123456789abc", seq=1, runs=(RUN,))


async def typed_round(sender: Bus, receiver: Bus, address: subjects.Address[TokenBatch]) -> float:
    """Seconds for COUNT messages through a `Bus`."""
    seen, done = 0, asyncio.Event()

    def take(delivery: Delivery[TokenBatch]) -> None:
        nonlocal seen
        seen += 1
        if seen == COUNT:
            done.set()

    subscription = await receiver.subscribe(address, take)
    start = time.perf_counter()
    for number in range(COUNT):
        sender.publish(address, BATCH)
        if number % CHUNK == CHUNK - 1:
            await asyncio.sleep(0)
    await asyncio.wait_for(done.wait(), ROUND_LIMIT_S)
    took = time.perf_counter() - start
    await subscription.stop()
    return took


async def raw_round(sender: nats.NATS, receiver: nats.NATS) -> float:
    """Seconds for COUNT payloads of the same size through nats-py, neither encoded nor decoded."""
    seen, done, payload = 0, asyncio.Event(), encode(BATCH)

    async def take(message: Msg) -> None:
        nonlocal seen
        seen += 1
        if seen == COUNT:
            done.set()

    subscription = await receiver.subscribe("raw", cb=take)
    # Twice: the ping of a flush may overtake the subscription, which then misses the first messages.
    await receiver.flush()
    await receiver.flush()
    start = time.perf_counter()
    for number in range(COUNT):
        await sender.publish("raw", payload)
        if number % CHUNK == CHUNK - 1:
            await asyncio.sleep(0)
    await asyncio.wait_for(done.wait(), ROUND_LIMIT_S)
    took = time.perf_counter() - start
    await subscription.unsubscribe()
    return took


async def measure(url: str) -> dict[str, list[float]]:
    raw = await nats.connect(url), await nats.connect(url)
    typed = await NatsBus.connect(url, "s"), await NatsBus.connect(url, "r", max_pending=COUNT + 1)
    broker = MemoryBroker(check_payload=False)
    memory = broker.connect("s"), broker.connect("r")
    rounds: dict[str, Callable[[], Awaitable[float]]] = {
        "raw nats-py": lambda: raw_round(*raw),
        "NatsBus": lambda: typed_round(*typed, TO),
        "MemoryBus": lambda: typed_round(*memory, TO),
    }
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(ROUNDS):
        for name, run in rounds.items():
            times[name].append(await run())
    for client in raw:
        await client.close()
    for bus in (*typed, *memory):
        await bus.drain()
    return times


@pytest.mark.nats
@pytest.mark.slow
def test_bench_messages_per_second_beside_raw_nats(tmp_path: Path) -> None:
    server = NatsServer(server_binary(), tmp_path)
    server.start()
    try:
        times = asyncio.run(measure(server.url))
    finally:
        server.stop()
    print(f"\n{COUNT} messages of {len(encode(BATCH))} B, median of {ROUNDS} interleaved rounds")
    base = statistics.median(times["raw nats-py"])
    for name, took in times.items():
        middle = statistics.median(took)
        print(
            f"{name:12} {COUNT / middle:10,.0f} msg/s {middle / COUNT * 1e6:7.2f} µs/msg"
            f"  {middle / base:5.2f} x raw  (rounds {min(took):.2f}-{max(took):.2f} s)"
        )
