"""Crowds of bad clients on a real gateway of a running cluster: idle, slow, too large, never reading.

Its memory stays within bounds and everybody else is served meanwhile.
"""

import asyncio
import json
import resource
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from dopd.config import Config, load
from dopd.supervisor.stack import gateway_url
from tests.e2e.live import demo
from tests.e2e.running import Running

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
IDLE = 10_000
OPEN_FILES = IDLE + 1000
PER_CONNECTION_BYTES = 16 * 1024
RECEIVING_MB = 32
LIMIT_S = 60.0
MIB = 2**20
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n"


class Gateway:
    """The gateway of a cluster, and sockets to it."""

    def __init__(self, up: Running, config: Config) -> None:
        self.url, self.pid = gateway_url(config), up.note()["gateway"].pid
        self._sockets = ExitStack()

    def connect(self, sent: str = "", receive_buffer: int = 0) -> socket.socket:
        to = urlsplit(self.url)
        client = self._sockets.enter_context(socket.socket())
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(LIMIT_S)
        client.connect((to.hostname, to.port))
        client.sendall(sent.encode())
        return client

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    async def serves(self) -> None:
        """A plain and a streamed request, on connections of their own."""
        body = {"model": "emulated", "prompt": "Once upon a time", "max_tokens": 4}
        async with httpx.AsyncClient(base_url=self.url, timeout=LIMIT_S) as client:
            plain, streamed = await asyncio.gather(
                client.post("/v1/completions", json=body),
                client.post("/v1/completions", json={**body, "stream": True}),
            )
        assert plain.status_code == streamed.status_code == 200
        assert plain.json()["usage"]["completion_tokens"] == 4 and "[DONE]" in streamed.text

    def close(self) -> None:
        self._sockets.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Config]]:
    folder = tmp_path_factory.mktemp("crowds")
    limits = {"http__max_receiving_mb": RECEIVING_MB, "http__write_timeout_s": 1, "http__header_timeout_s": 60}
    with demo(folder, cluster__prefill=1, cluster__decode=1, **limits) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        yield up, load(folder / "run/config.json")
        up.interrupt()
        assert up.code(60.0) == 0


@pytest.fixture
async def gateway(cluster: tuple[Running, Config]) -> Iterator[Gateway]:
    found = Gateway(*cluster)
    await found.serves()
    yield found
    found.close()
    await found.serves()


@contextmanager
def many_files(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < number:
        pytest.skip(f"the system allows a process {hard} open files, {number} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def closed(sockets: list[socket.socket], timeout_s: float = 0.0) -> int:
    """How many of these the gateway has closed or reset, none of their data being read."""
    poll = select.poll()
    for one in sockets:
        poll.register(one, select.POLLRDHUP)
    return len(poll.poll(timeout_s * 1000))


async def test_bodies_that_do_not_end_are_held_up_to_a_limit_over_all_connections(gateway: Gateway) -> None:
    before = gateway.memory()
    body = " " * (4 * MIB)

    def send() -> bytes:
        client = gateway.connect(HEAD % (8 * MIB))
        try:
            client.sendall(body.encode())
            client.settimeout(2.0)
            return client.recv(4096)
        except TimeoutError:
            return b""  # held
        except ConnectionError:
            return b"reset"

    answers = await asyncio.gather(*(asyncio.to_thread(send) for _ in range(24)))
    taken = gateway.memory() - before
    print(f"24 bodies of 4 MiB of 8: {taken / MIB:.0f} MiB, {answers.count(b'')} held")
    assert 1 <= answers.count(b"") <= RECEIVING_MB // 4
    assert all(answer == b"" or b" 503 " in answer or answer == b"reset" for answer in answers)
    assert any(b" 503 " in answer for answer in answers)
    assert taken < 3 * RECEIVING_MB * MIB
    await gateway.serves()


async def test_clients_that_never_read_lose_their_connection_and_their_work(gateway: Gateway) -> None:
    before = gateway.memory()
    ask = {"model": "emulated", "prompt": "Once upon a time", "max_tokens": 3000, "stream": True}
    ask |= {"return_token_ids": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    text = json.dumps(ask)
    deaf = [gateway.connect(HEAD % len(text) + text, receive_buffer=4096) for _ in range(32)]
    await gateway.serves()
    async with asyncio.timeout(LIMIT_S):
        while (gone := closed(deaf)) < len(deaf):  # noqa: ASYNC110 - the other side is another process
            await asyncio.sleep(0.2)
    taken = gateway.memory() - before
    print(f"{gone} clients that never read: {taken / MIB:.0f} MiB")
    assert taken < 32 * MIB


async def test_ten_thousand_idle_connections_take_little_memory(gateway: Gateway) -> None:
    """Silent ones, ones in the middle of a header, and ones in the middle of a body."""
    before = gateway.memory()
    kinds = ["", "GET /v1/models HTTP/1.1\r\nHost: ", HEAD % 1000 + '{"model": "emul']
    with many_files(OPEN_FILES):
        idle = [gateway.connect(sent) for sent in islice(cycle(kinds), IDLE)]
        await gateway.serves()
        taken = gateway.memory() - before
        print(f"{IDLE} idle connections: {taken / MIB:.0f} MiB, {taken / IDLE / 1024:.1f} KiB each")
        assert closed(idle) == 0
        assert taken < IDLE * PER_CONNECTION_BYTES
        gateway.close()
