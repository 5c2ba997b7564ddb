"""Several client processes as one: each request once, one zero, one stop, and no child that is left over."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from dopd.errors import LoadError
from dopd_loadgen.drive import DriveSettings, Progress, clock
from dopd_loadgen.model import Planned
from dopd_loadgen.processes import ClientProcesses, added_up, dealt_out, share
from dopd_loadgen.target_http import HttpSettings, HttpTarget
from tests.selftest_server import MODEL, SelftestServer, Settings, prompt


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[SelftestServer, str]]:
    server = SelftestServer(Settings(ttft_s=(0.0, 0.01), gap_s=(0.0, 0.002)))
    url = await server.start()
    try:
        yield server, url
    finally:
        await server.stop()


@asynccontextmanager
async def opened(url: str, count: int, model: str = MODEL) -> AsyncIterator[ClientProcesses]:
    make = partial(HttpTarget, url, model, prompt, HttpSettings(ready_timeout_s=0.0))
    clients = ClientProcesses(make, count, open_timeout_s=60)
    await clients.open()
    try:
        yield clients
    finally:
        await clients.close()


def requests(*behaviours: str, every_s: float = 0.01) -> list[Planned]:
    return [Planned(i, i * every_s, 5, 10, text=behaviour) for i, behaviour in enumerate(behaviours)]


async def gone(pids: Sequence[int]) -> bool:
    """Whether all these processes end within 10 s; a zombie has ended."""
    for _ in range(200):
        stats = [Path(f"/proc/{pid}/stat") for pid in pids]
        if all(not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z" for stat in stats):
            return True
        await asyncio.sleep(0.05)
    return False


def pids_of(clients: ClientProcesses) -> list[int]:
    return [client._process.pid for client in clients._clients if client._process is not None]


async def test_every_request_is_sent_once_and_the_records_come_in_the_order_of_the_schedule() -> None:
    seen: list[Progress] = []
    async with serving() as (server, url), opened(url, 2) as clients:
        schedule = requests(*["", "", "early_end"] * 20)[::-1]
        records = await clients.drive(schedule, DriveSettings(progress_s=0.1), seen.append)
        pids = pids_of(clients)
    assert [r.index for r in records] == [p.index for p in schedule]
    assert [r.failure for r in records] == ["truncated", "", ""] * 20
    assert sorted(truth.index for truth in server.truths) == list(range(60))
    assert (seen[-1].planned, seen[-1].sent, seen[-1].done, seen[-1].failed) == (60, 60, 40, 20)
    assert len(set(pids)) == 2 and os.getpid() not in pids and await gone(pids)


async def test_all_clients_count_from_the_zero_they_are_given() -> None:
    """It lies ahead: one that took its own start for the zero would be early."""
    async with serving() as (server, url), opened(url, 2) as clients:
        zero_s = clock()() + 1.5
        records = await clients.drive(requests(*[""] * 40, every_s=0.02), DriveSettings(zero_s=zero_s))
    got = {truth.index: truth.received_s - zero_s for truth in server.truths}
    assert all(r.sent_s is not None and r.intended_s <= r.sent_s <= got[r.index] for r in records)


async def test_a_stop_reaches_all_and_still_gives_every_record() -> None:
    async with serving() as (_, url), opened(url, 2) as clients:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(1.0, stop.set)
        schedule = requests(*["", "mute"] * 500, every_s=0.1)
        records = await clients.drive(schedule, DriveSettings(grace_s=0.2), stop=stop)
    failures = [r.failure for r in records]
    assert len(failures) == 1000 and {"", "timeout", "unsent"} == set(failures)
    sent = failures.index("unsent")
    assert set(failures[sent + 1 :]) <= {"unsent", ""} and failures.count("unsent") > 900


async def test_a_client_that_dies_is_named_and_the_others_are_ended() -> None:
    async with serving() as (_, url):
        with pytest.raises(LoadError, match=r"client process 1 of 2: died with exit code -9"):
            async with opened(url, 2) as clients:
                pids = pids_of(clients)
                asyncio.get_running_loop().call_later(1.0, os.kill, pids[0], signal.SIGKILL)
                await clients.drive(requests(*[""] * 1000, every_s=0.1), DriveSettings())
        assert await gone(pids)


async def test_a_target_that_cannot_be_opened_is_said_as_by_one_process() -> None:
    async with serving() as (_, url):
        with pytest.raises(LoadError, match="has no model 'gpt-9'"):
            async with opened(url, 2, model="gpt-9"):
                pass


PARENT = """
import asyncio, sys
from functools import partial
from itertools import chain
from dopd_loadgen.processes import ClientProcesses
from dopd_loadgen.target_http import HttpSettings, HttpTarget
from tests.selftest_server import MODEL, prompt

async def main():
    clients = ClientProcesses(partial(HttpTarget, sys.argv[1], MODEL, prompt, HttpSettings()), 2)
    await clients.open()
    print(*(client._process.pid for client in clients._clients), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_clients_do_not_outlive_a_parent_that_is_killed() -> None:
    async with serving() as (_, url):
        root = str(Path(__file__).parents[2])
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PARENT, url),
            stdout=asyncio.subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": root},
        )
        try:
            assert parent.stdout is not None
            pids = [int(pid) for pid in (await asyncio.wait_for(parent.stdout.readline(), 30)).split()]
            assert len(pids) == 2
        finally:
            parent.kill()
            await parent.wait()
        assert await gone(pids)


@pytest.mark.parametrize(("limit", "parts"), [(None, [4, 3, 3]), (2, [5, 5, 0]), (7, [4, 3, 3])])
def test_a_schedule_is_dealt_out_in_turn_by_time(limit: int | None, parts: list[int]) -> None:
    schedule = [Planned(i, float(-i), 5, 5) for i in range(10)]
    places = dealt_out(schedule, 3, limit)
    assert [len(part) for part in places] == parts and sorted(chain(*places)) == list(range(10))
    assert [part[0] for part in places if part] == [9, 8, 7][: sum(map(bool, parts))]


def test_the_limit_of_a_closed_loop_is_shared_out() -> None:
    assert [share(7, 3, number) for number in range(3)] == [3, 2, 2] and share(None, 3, 0) is None
    assert [share(2, 3, number) for number in range(3)] == [1, 1, 1]  # the last has nothing to send


def test_progress_of_all_is_the_sum_and_the_worst_lag() -> None:
    some = [Progress(1.0, 5, 3, 1, 1, 0.2), Progress(1.1, 5, 4, 2, 0, 0.1)]
    assert added_up(some, 20) == Progress(1.1, 20, 7, 3, 1, 0.2)
