"""What tracing costs: CPU of the gateway's process per request, without, with timelines, with spans, side by side.

Two emulated clusters with a broker each, one of whose gateways sends spans to a sink here; interleaved rounds of the
same load, less the CPU of an idle gateway. Measures and asserts nothing about time. Run:
`.venv/bin/pytest -s --timeout 0 tests/bench/bench_tracing.py`.
"""

import asyncio
import os
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.e2e.running import Running
from tests.nats_server import server_binary

REQUESTS, AT_ONCE, ISL, OSL, ROUNDS = 400, 32, 200, 20, 5
IDLE_S = 3.0
BODY = msgspec.json.encode(
    {"model": "", "prompt": list(range(3, 3 + ISL)), "max_tokens": OSL, "ignore_eos": True, "stream": True}
)
TRACED = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
MODES = ("off", "timeline", "spans")
SETTINGS = {
    "DOPD__GATEWAY__PORT": "0",
    "DOPD__CLUSTER__PREFILL": "1",
    "DOPD__CLUSTER__DECODE": "1",
    "DOPD__POLICY__NAME": "simple",
}


@dataclass
class Served:
    """A cluster that is up: where to ask, and whose CPU counts."""

    url: str
    model: str
    pid: int

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(up: Running) -> Served:
    up.wait_for("Ready after", 60.0)
    up.wait_for("curl ")
    line = next(line for line in up.output.splitlines() if line.strip().startswith("curl "))
    _, url, *_, body = shlex.split(line)
    return Served(url, msgspec.json.decode(body)["model"], up.note()["gateway"].pid)


class Sink:
    """A collector that takes all and keeps nothing but the count of bytes."""

    def __init__(self) -> None:
        self.received = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self.received += len(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def round_of(session: aiohttp.ClientSession, to: Served, headers: dict[str, str]) -> float:
    """CPU seconds of the gateway per request."""
    body = BODY.replace(b'"model":""', b'"model":' + msgspec.json.encode(to.model))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate, session.post(to.url, data=body, headers=headers) as response:
            assert response.status == 200 and b"[DONE]" in await response.read()

    async with asyncio.timeout(120.0):
        idle_s, start_s, before_s = await idle(to), time.perf_counter(), to.cpu_s()
        await asyncio.gather(*(one() for _ in range(REQUESTS)))
        await asyncio.sleep(6.0)  # the last batch of spans goes out after five seconds
        span_s = time.perf_counter() - start_s
        return (to.cpu_s() - before_s - idle_s * span_s) / REQUESTS


async def idle(to: Served) -> float:
    """CPU seconds per second without load."""
    before_s = to.cpu_s()
    await asyncio.sleep(IDLE_S)
    return (to.cpu_s() - before_s) / IDLE_S


async def measure(folder: Path) -> tuple[dict[str, list[float]], int]:
    sink = Sink()
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": await sink.start()}
    command = ["dopd.cli", "up", "--demo", "--no-load"]
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    with (
        Running(command, folder / "a", {**SETTINGS, "DOPD__CLUSTER__STATE_DIR": str(folder / "a")}) as a,
        Running(command, folder / "b", {**SETTINGS, **collector, "DOPD__CLUSTER__STATE_DIR": str(folder / "b")}) as b,
    ):
        plain, traced = await asyncio.to_thread(served, a), await asyncio.to_thread(served, b)
        how: dict[str, tuple[Served, dict[str, Any]]] = {
            "off": (plain, {}),
            "timeline": (plain, {"x-dopd-timeline": "1"}),
            "spans": (traced, TRACED),
        }
        async with aiohttp.ClientSession() as session:
            for number in range(ROUNDS + 1):
                for mode in MODES:
                    took = await round_of(session, *how[mode])
                    if number:  # the first warms up
                        found[mode].append(took)
        for up in (a, b):
            up.interrupt()
            await asyncio.to_thread(up.code, 60.0)
    return found, sink.received


@pytest.mark.nats
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bench_gateway_cpu_per_request_with_and_without_tracing(tmp_path: Path) -> None:
    server_binary()
    found, received = asyncio.run(measure(tmp_path))
    print(f"\n{REQUESTS} requests of {ISL} + {OSL} tokens, {AT_ONCE} at once, median of {ROUNDS} interleaved rounds")
    base = statistics.median(found["off"])
    for mode, took in found.items():
        middle = statistics.median(took)
        print(
            f"{mode:9} {middle * 1e3:6.2f} ms CPU/request {(middle - base) * 1e6:+7.0f} µs"
            f"  (rounds {min(took) * 1e3:.2f}-{max(took) * 1e3:.2f} ms)"
        )
    print(f"{received / ((ROUNDS + 1) * REQUESTS):.0f} B of spans per request")
    assert received > 0
