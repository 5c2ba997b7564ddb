"""One schedule driven by several client processes, for when one is not fast enough.

Consumes what makes a `Target`, and a schedule, which is dealt out in turn; produces the records as `drive` does. All
processes share one zero, since the monotonic clock is the machine's. As a program it is one such client, which is told
what to do on its standard input.
"""

import asyncio
import contextlib
import os
import pickle
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import uvloop

from dopd.errors import LoadError
from dopd.runtime.lifeline import PARENT_VARIABLE, die_with, hold_to_parent
from dopd_loadgen.drive import DriveSettings, Progress, drive
from dopd_loadgen.model import Planned, Record, Target

MakeTarget = Callable[[], Target]

START_S = 0.2
"""From the word to go until the zero: it has to reach all of them."""
SILENT_S = 60.0
"""A client that says nothing for so long hangs; progress is a word."""
END_S = 5.0
_SIZE_BYTES = 8


class _Ready(msgspec.Struct, tag=True):
    """The target is open, or the schedule is here."""


class _Refused(msgspec.Struct, tag=True):
    where: str
    reason: str


class _Told(msgspec.Struct, tag=True):
    progress: Progress


class _Ended(msgspec.Struct, tag=True):
    records: list[Record]


_Word = _Ready | _Refused | _Told | _Ended


class ClientProcesses:
    """`processes` clients, each with a target of its own. `make_target` must survive pickling by name.

    Open, drive and close it like a target and `drive`. `zero_s` is the zero of what is driven. `open_timeout_s` bounds
    the start of a client with its target's `open`.
    """

    def __init__(self, make_target: MakeTarget, processes: int, open_timeout_s: float = 600.0) -> None:
        self._make_target, self._count, self._open_timeout_s = make_target, processes, open_timeout_s
        self._clients: list[_Client] = []
        self.zero_s = 0.0

    async def open(self) -> None:
        """Start them and have each open its target. Raises LoadError."""
        try:
            for number in range(1, self._count + 1):
                client = _Client(f"client process {number} of {self._count}")
                self._clients.append(client)
                await client.start(self._make_target)
            await _all(client.ready(self._open_timeout_s) for client in self._clients)
        except BaseException:
            await self.close()
            raise

    async def drive(
        self,
        schedule: Sequence[Planned],
        settings: DriveSettings,
        on_progress: Callable[[Progress], None] | None = None,
        stop: asyncio.Event | None = None,
    ) -> list[Record]:
        """As `drive`; raises LoadError naming a client that died or hangs. Once only."""
        parts = dealt_out(schedule, self._count, settings.max_concurrency)
        for client, part in zip(self._clients, parts, strict=True):
            client.tell([schedule[place] for place in part])
        await _all(client.ready(SILENT_S) for client in self._clients)
        zero_s = self.zero_s = time.monotonic() + START_S if settings.zero_s is None else settings.zero_s
        told: dict[int, Progress] = {}

        def hear(number: int, progress: Progress) -> None:
            told[number] = progress
            if on_progress is not None:
                on_progress(added_up(list(told.values()), len(schedule)))

        for number, client in enumerate(self._clients):
            limit = share(settings.max_concurrency, self._count, number)
            client.tell(replace(settings, zero_s=zero_s, max_concurrency=limit))
        asked = asyncio.create_task(self._pass_on(stop))
        try:
            runs = (client.records(partial(hear, number)) for number, client in enumerate(self._clients))
            gathered = await _all(runs)
        finally:
            asked.cancel()
        records: dict[int, Record] = {}
        for part, some in zip(parts, gathered, strict=True):
            records |= zip(part, some, strict=True)
        return [records[place] for place in range(len(schedule))]

    async def close(self) -> None:
        """End them all. May be called twice."""
        await asyncio.gather(*(client.end() for client in self._clients))
        self._clients.clear()

    async def _pass_on(self, stop: asyncio.Event | None) -> None:
        if stop is not None:
            await stop.wait()
            for client in self._clients:
                client.tell(None)


async def _all(works: Any) -> list[Any]:
    """All outcomes, or the first error, and then nothing goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def dealt_out(schedule: Sequence[Planned], processes: int, max_concurrency: int | None) -> list[list[int]]:
    """Places in the schedule for each process, in turn by time: each has the same load at any moment.

    Where there are fewer places under way than processes, the last ones have nothing to do.
    """
    busy = processes if max_concurrency is None else min(processes, max_concurrency)
    order = sorted(range(len(schedule)), key=lambda place: schedule[place].at_s)
    return [order[number::busy] if number < busy else [] for number in range(processes)]


def share(max_concurrency: int | None, processes: int, number: int) -> int | None:
    """This process's part of the limit; 1 for one that has nothing to do."""
    return max_concurrency and max(1, max_concurrency // processes + (number < max_concurrency % processes))


def added_up(some: Sequence[Progress], planned: int) -> Progress:
    """The progress of all; those that have not said anything yet have sent nothing."""
    sent, done, failed = sum(p.sent for p in some), sum(p.done for p in some), sum(p.failed for p in some)
    return Progress(max(p.elapsed_s for p in some), planned, sent, done, failed, max(p.lag_s for p in some))


class _Client:
    """A child process, seen from the parent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, make_target: MakeTarget) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dopd_loadgen.processes"),
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, "PYTHONPATH": paths, PARENT_VARIABLE: str(os.getpid())},
            # Ctrl-C is for the parent, which then asks for a stop.
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),  # takes no lock between fork and exec
        )
        self.tell(make_target)

    def tell(self, what: Any) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(_framed(pickle.dumps(what)))

    async def ready(self, timeout_s: float) -> None:
        await self._hear(timeout_s)

    async def records(self, on_progress: Callable[[Progress], None]) -> list[Record]:
        while True:
            word = await self._hear(SILENT_S)
            if isinstance(word, _Ended):
                return word.records
            if isinstance(word, _Told):
                on_progress(word.progress)

    async def end(self) -> None:
        """It goes by itself when its input ends; whatever it does, it is gone when this returns."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _hear(self, timeout_s: float) -> _Word:
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                word: _Word = msgspec.msgpack.decode(await _frame(self._process.stdout), type=_Word)
        except TimeoutError:
            raise LoadError(self.name, f"has said nothing for {timeout_s:g} s") from None
        except asyncio.IncompleteReadError:
            code = await asyncio.wait_for(self._process.wait(), END_S)
            raise LoadError(self.name, f"died with exit code {code} in the middle of the run") from None
        if isinstance(word, _Refused):
            raise LoadError(word.where, word.reason)
        return word


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(_SIZE_BYTES, "big") + payload


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(_SIZE_BYTES), "big"))


# --- the child ----------------------------------------------------------------------------------------------------


async def _client(out: int) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    def say(word: _Word) -> None:
        left = memoryview(_framed(msgspec.msgpack.encode(word)))
        while left:
            left = left[os.write(out, left) :]

    target: Target = pickle.loads(await _frame(reader))()
    try:
        await target.open()
    except LoadError as error:
        say(_Refused(error.where, error.reason))
        return
    try:
        say(_Ready())
        schedule: list[Planned] = pickle.loads(await _frame(reader))
        say(_Ready())
        settings: DriveSettings = pickle.loads(await _frame(reader))
        stop = asyncio.Event()
        # The next word is to stop, and so is the end of the words.
        asked = asyncio.create_task(reader.read(1))
        asked.add_done_callback(lambda _: stop.set())
        records = await drive(schedule, target, settings, lambda progress: say(_Told(progress)), stop)
        say(_Ended(records))
        asked.cancel()
    finally:
        await target.close()


def main() -> None:
    """A client process."""
    hold_to_parent()
    # What anything prints must not get between the frames.
    out = os.dup(1)
    os.dup2(2, 1)
    # The parent has closed the pipe, or has gone: there is nobody to tell.
    with contextlib.suppress(asyncio.IncompleteReadError, BrokenPipeError):
        uvloop.run(_client(out))


if __name__ == "__main__":
    main()
