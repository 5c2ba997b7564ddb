"""Sends a schedule at a target and keeps the time: every request at its moment, whatever became of the others.

Consumes `Planned`s and an open `Target`; produces one `Record` for each, and what the client's own lateness was. It
runs on a real loop and on a virtual one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

from dopd.runtime.virtual import VirtualTimeLoop
from dopd_loadgen.model import Planned, Record, Target

CANCEL_S = 5.0
"""How long requests may take to let go of their connections once they are cancelled."""
LAG_LIMIT_S = 0.010
LAG_SHARE_OF_TTFT = 0.01


@dataclass(frozen=True, slots=True)
class DriveSettings:
    """How a schedule is sent.

    Without `max_concurrency` the loop is open: nothing waits for an answer, and a request has `timeout_s` from its
    intended send. With it the loop is closed: a request also waits until fewer than so many are under way, and has
    `timeout_s` from its actual send, since its intended one may be long ago. Latencies count from the intended send in
    both. `grace_s` is what requests under way get after a stop. `zero_s` is the run's zero on `clock()` (None: now).
    """

    timeout_s: float = 600.0
    max_concurrency: int | None = None
    grace_s: float = 5.0
    progress_s: float = 1.0
    zero_s: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `done` came to their end, `failed` did not; `lag_s` is the worst lag since the last report."""

    elapsed_s: float
    planned: int
    sent: int
    done: int
    failed: int
    lag_s: float

    @property
    def running(self) -> int:
        return self.sent - self.done - self.failed


@dataclass(frozen=True, slots=True)
class Lag:
    """Actual minus intended send, over the requests that were sent."""

    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


def clock() -> Callable[[], float]:
    """The running loop's time at full resolution.

    uvloop's `time()` counts whole milliseconds of the monotonic clock, which is far too coarse for gaps between tokens.
    """
    loop = asyncio.get_running_loop()
    return loop.time if isinstance(loop, VirtualTimeLoop) else time.monotonic


def zero_of(record: Record, now_s: float) -> float:
    """The run's zero on `clock()`, for a target whose `send` has just been called at `now_s`."""
    return now_s if record.sent_s is None else now_s - record.sent_s


async def drive(
    schedule: Sequence[Planned],
    target: Target,
    settings: DriveSettings,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> list[Record]:
    """Send all of it and wait until each request is settled; one record per request, in the schedule's order.

    The target is open already and stays open. Setting `stop` ends the sending at once: what is under way has
    `grace_s` left and is then a `timeout`, the rest is `unsent`. `on_progress` is called every `progress_s` and at the
    end.
    """
    return await _Drive(schedule, target, settings, on_progress).run(stop or asyncio.Event())


class _Drive:
    def __init__(
        self,
        schedule: Sequence[Planned],
        target: Target,
        settings: DriveSettings,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._now = clock()
        self._zero_s = self._now() if settings.zero_s is None else settings.zero_s
        self._target, self._settings, self._on_progress = target, settings, on_progress
        self._records = [_blank(planned) for planned in schedule]
        self._order = sorted(zip(schedule, self._records, strict=True), key=lambda pair: pair[0].at_s)
        self._free = asyncio.Semaphore(settings.max_concurrency) if settings.max_concurrency else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        # A target raises nothing, so what it raises is a bug, and the run is void.
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sent = self._done = self._failed = 0
        self._worst_lag_s = 0.0

    async def run(self, stop: asyncio.Event) -> list[Record]:
        loop = asyncio.get_running_loop()
        whole, stopping = loop.create_task(self._send_and_settle()), loop.create_task(stop.wait())
        tasks: set[asyncio.Task[Any]] = {whole, stopping}
        if self._on_progress is not None:
            tasks.add(loop.create_task(self._report()))
        try:
            ends: set[asyncio.Future[Any]] = {whole, stopping, self._broken}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done() and not self._broken.done():
                self._stopped = True
                whole.cancel()
                await self._settled(self._settings.grace_s)
        finally:
            tasks |= self._tasks
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_S)
        for outcome in (self._broken, whole):
            if outcome.done() and not outcome.cancelled():
                outcome.result()
        self._tell()
        return self._records

    async def _send_and_settle(self) -> None:
        await self._send_all()
        await self._settled(None)

    async def _settled(self, limit_s: float | None) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit_s)

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        for planned, record in self._order:
            await self._until(self._zero_s + planned.at_s)
            if self._free is not None:
                await self._free.acquire()
            task = loop.create_task(self._one(planned, record))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _until(self, when_s: float) -> None:
        # At least once, so that in a burst each request goes out before the next is made. A timer of uvloop may fire
        # half a millisecond early.
        await asyncio.sleep(max(0.0, when_s - self._now()))
        while (left_s := when_s - self._now()) > 0:  # noqa: ASYNC110 - it waits for the time itself
            await asyncio.sleep(left_s)

    async def _one(self, planned: Planned, record: Record) -> None:
        sent_s = self._now() - self._zero_s
        begin_s = planned.at_s if self._free is None else sent_s
        record.sent_s = sent_s
        self._sent += 1
        self._worst_lag_s = max(self._worst_lag_s, sent_s - planned.at_s)
        try:
            async with asyncio.timeout_at(self._zero_s + begin_s + self._settings.timeout_s):
                await self._target.send(planned, record)
        except TimeoutError:
            self._broken_off(record, f"no end within {self._settings.timeout_s:g} s")
        except asyncio.CancelledError:
            self._broken_off(record, "the run was stopped before its end")
            if not self._stopped:
                raise
        except Exception as error:
            if not self._broken.done():
                self._broken.set_exception(error)
        finally:
            if self._free is not None:
                self._free.release()
            self._done += not record.failure
            self._failed += bool(record.failure)

    def _broken_off(self, record: Record, detail: str) -> None:
        record.failure, record.detail = "timeout", detail
        record.ended_s = self._now() - self._zero_s

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.progress_s)
            self._tell()

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        elapsed_s = self._now() - self._zero_s
        lag_s, self._worst_lag_s = self._worst_lag_s, 0.0
        self._on_progress(Progress(elapsed_s, len(self._records), self._sent, self._done, self._failed, lag_s))


def _blank(planned: Planned) -> Record:
    return Record(
        index=planned.index,
        isl_tokens=planned.isl_tokens,
        osl_tokens=planned.osl_tokens,
        intended_s=planned.at_s,
        phase=planned.phase,
    )


def schedule_lag(records: Sequence[Record]) -> Lag | None:
    """How late the client sent; None when it sent nothing. In a closed loop it is the wait for a free place."""
    lags = sorted(r.sent_s - r.intended_s for r in records if r.sent_s is not None)
    if not lags:
        return None
    return Lag(_quantile(lags, 0.5), _quantile(lags, 0.9), _quantile(lags, 0.99), lags[-1])


def lag_limit_s(records: Sequence[Record]) -> float:
    """10 ms, or 1 % of the median TTFT where that is more: the lag is part of every latency that is reported."""
    ttfts = sorted(r.times_s[0] - r.intended_s for r in records if r.times_s)
    return max(LAG_LIMIT_S, LAG_SHARE_OF_TTFT * _quantile(ttfts, 0.5)) if ttfts else LAG_LIMIT_S


def degraded(records: Sequence[Record], limit_s: float | None = None, *, closed: bool = False) -> str:
    """Why these figures are not the server's alone, as a sentence; empty when the client kept its schedule.

    It did not when the p99 of the lag is above `limit_s` (default: `lag_limit_s`). A closed loop has no schedule to
    keep, so there it is always empty.
    """
    lag = None if closed else schedule_lag(records)
    limit_s = lag_limit_s(records) if limit_s is None else limit_s
    if lag is None or lag.p99_s <= limit_s:
        return ""
    return (
        f"the client was late itself: p99 of actual minus intended send is {lag.p99_s * 1e3:.1f} ms, "
        f"more than {limit_s * 1e3:.1f} ms; use more client processes or a lower rate"
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """By linear interpolation between neighbours, as numpy does."""
    place = share * (len(ordered) - 1)
    below = floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
