"""What the load generator itself costs: 300 requests/s of 100 tokens, one event each, from a server that does nothing.

Measures and asserts nothing about time. Run: `.venv/bin/pytest -s --timeout 0 tests/bench/bench_loadgen.py`.
As a program it is the server.
"""

import asyncio
import os
import resource
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from dopd.runtime.lifeline import PARENT_VARIABLE, hold_to_parent
from dopd_loadgen.drive import DriveSettings, drive, schedule_lag
from dopd_loadgen.model import Planned, Record
from dopd_loadgen.processes import ClientProcesses
from dopd_loadgen.target_http import HttpSettings, HttpTarget

RATE, TOKENS, SPAN_S = 300.0, 100, 10.0
TICK_S, TICKS_PER_TOKEN = 0.001, 10
How = Callable[[str, list[Planned]], Coroutine[Any, Any, list[Record]]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def schedule() -> list[Planned]:
    count = int(RATE * SPAN_S)
    return [Planned(i, i / RATE, isl_tokens=100, osl_tokens=TOKENS) for i in range(count)]


def prompt(planned: Planned) -> list[int]:
    return list(range(3, 3 + planned.isl_tokens))


def target(url: str) -> HttpTarget:
    return HttpTarget(url, "hose", prompt, HttpSettings())


def cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


async def alone(url: str, load: list[Planned]) -> list[Record]:
    """Everything in this process."""
    client = target(url)
    await client.open()
    try:
        return await drive(load, client, DriveSettings(timeout_s=60))
    finally:
        await client.close()


async def by_two(url: str, load: list[Planned]) -> list[Record]:
    """In two child processes."""
    clients = ClientProcesses(partial(target, url), 2)
    await clients.open()
    try:
        return await clients.drive(load, DriveSettings(timeout_s=60))
    finally:
        await clients.close()


def measured(how: How, who: int, url: str, load: list[Planned]) -> tuple[list[Record], float]:
    """The records, and the client's CPU seconds. Children count once they have ended, which the server has not."""
    before_s = cpu_s(who)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        records = runner.run(how(url, load))
    return records, cpu_s(who) - before_s


def told(name: str, records: list[Record], used_s: float) -> None:
    good = [r for r in records if not r.failure]
    events = sum(len(r.times_s) for r in records)
    tokens = sum(sum(r.counts) for r in records)
    sent = [r.sent_s for r in records if r.sent_s is not None]
    lag = schedule_lag(records)
    assert lag is not None and len(good) == len(records) and tokens == events == len(records) * TOKENS
    over_s = max(r.ended_s or 0.0 for r in records)
    print(
        f"{name:12} {(len(sent) - 1) / (max(sent) - min(sent)):6.1f} requests/s  {tokens / over_s:8,.0f} tokens/s  "
        f"CPU {used_s:6.2f} s of {over_s:.1f} s  {used_s / events * 1e6:6.1f} µs/event  "
        f"{used_s / len(records) * 1e3:6.2f} ms/request  lag p50 {lag.p50_s * 1e3:.2f} p99 {lag.p99_s * 1e3:.2f} "
        f"max {lag.max_s * 1e3:.2f} ms"
    )


@pytest.mark.slow
def test_bench_the_clients_own_cost() -> None:
    print()
    ways: list[tuple[str, How, int]] = [
        ("1 process", alone, resource.RUSAGE_SELF),
        ("2 processes", by_two, resource.RUSAGE_CHILDREN),
    ]
    for name, how, who in ways:
        with server() as url:
            _, start_s = measured(how, who, url, [])
            records, used_s = measured(how, who, url, schedule())
        told(name, records, used_s - start_s)


# --- the server ---------------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[str]:
    root = Path(__file__).parents[2]
    env = {**os.environ, PARENT_VARIABLE: str(os.getpid()), "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(count: int, finish: str | None) -> bytes:
    one = {"index": 0, "text": " word", "logprobs": None, "finish_reason": finish, "stop_reason": None}
    usage = {"prompt_tokens": 100, "completion_tokens": count, "total_tokens": 100 + count}
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1_700_000_000, "model": "hose"}
    return b"data: " + msgspec.json.encode({**head, "choices": [one], "usage": usage}) + b"\n\n"


EVENTS = [_chunk(_event(count, "length" if count == TOKENS else None)) for count in range(1, TOKENS + 1)]
EVENTS[0] = HEAD + EVENTS[0]
EVENTS[-1] += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Hose(asyncio.Protocol):
    """Each request joins the slot whose turn comes next; a slot writes one event per turn to each of its requests."""

    slots: tuple[list["Hose"], ...] = tuple([] for _ in range(TICKS_PER_TOKEN))
    turn = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._buffer = transport, b""

    def connection_lost(self, error: Exception | None) -> None:
        self.left = deque[bytes]()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if found and len(body) >= length:
            self._buffer = b""
            probe = b'"max_tokens":1,' in body
            whole = [HEAD + _chunk(_event(1, "length")) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]
            self.left = deque(whole if probe else EVENTS)
            self.slots[(Hose.turn + 1) % TICKS_PER_TOKEN].append(self)

    @classmethod
    def tick(cls) -> None:
        cls.turn += 1
        slot = cls.slots[cls.turn % TICKS_PER_TOKEN]
        for hose in slot:
            if hose.left:
                hose._transport.write(hose.left.popleft())
        slot[:] = [hose for hose in slot if hose.left]


async def serve() -> None:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(Hose, "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    begin_s, ticks = loop.time(), 0
    while True:
        ticks += 1
        await asyncio.sleep(max(0.0, begin_s + ticks * TICK_S - loop.time()))
        Hose.tick()


if __name__ == "__main__":
    hold_to_parent()
    uvloop.run(serve())
