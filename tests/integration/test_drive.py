"""Sending a schedule, in virtual time: every request at its moment, one record each, whatever the target does."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from dopd.runtime.virtual import run_virtual
from dopd_loadgen.drive import DriveSettings, Progress, degraded, drive, lag_limit_s, schedule_lag, zero_of
from dopd_loadgen.model import Planned, Record


def planned(count: int, every_s: float = 1.0) -> list[Planned]:
    return [Planned(i, i * every_s, isl_tokens=10, osl_tokens=2) for i in range(count)]


class Slow:
    """Answers with two tokens after `ttft_s` and `ttft_s + gap_s`. `busy` counts what is under way, `most` its peak."""

    def __init__(self, ttft_s: Callable[[Planned], float], gap_s: float = 0.5) -> None:
        self._ttft_s, self._gap_s = ttft_s, gap_s
        self.busy = self.most = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def send(self, planned: Planned, record: Record) -> None:
        loop = asyncio.get_running_loop()
        zero_s = zero_of(record, loop.time())
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            for wait_s in (self._ttft_s(planned), self._gap_s):
                await asyncio.sleep(wait_s)
                record.times_s.append(loop.time() - zero_s)
                record.counts.append(1)
            record.failure = ""
        finally:
            self.busy -= 1
            record.ended_s = loop.time() - zero_s


def driven(schedule: Sequence[Planned], target: Slow, **settings: Any) -> list[Record]:
    async def main() -> list[Record]:
        await asyncio.sleep(100)  # the run's zero is not the loop's
        return await drive(schedule, target, DriveSettings(**settings))

    return run_virtual(main())


def test_each_request_is_sent_at_its_intended_time() -> None:
    records = driven(planned(50, every_s=0.1), Slow(lambda _: 3.0))
    assert [r.sent_s for r in records] == pytest.approx([r.intended_s for r in records], abs=1e-9)
    assert all(r.failure == "" and r.times_s[0] - r.intended_s == pytest.approx(3.0) for r in records)


def test_a_stalled_server_does_not_hold_the_sending_back_and_shows_in_the_latencies() -> None:
    """The server stands still from 5 to 15 s. A client that waited for answers would see one slow request."""

    def until_thawed(request: Planned) -> float:
        return max(0.1, 15.0 - request.at_s) if request.at_s >= 5 else 0.1

    records = driven(planned(30), Slow(until_thawed))
    ttfts = [r.times_s[0] - r.intended_s for r in records]
    assert sum(t > 0.5 for t in ttfts) == 10 and max(ttfts) == pytest.approx(10.0)


def test_records_come_in_the_order_of_the_schedule_even_when_that_is_not_the_order_of_time() -> None:
    schedule = list(reversed(planned(5)))
    records = driven(schedule, Slow(lambda _: 0.1))
    assert [r.index for r in records] == [4, 3, 2, 1, 0]
    assert [r.sent_s for r in records] == pytest.approx([4, 3, 2, 1, 0])


def test_a_closed_loop_never_has_more_under_way_and_counts_from_the_intended_time() -> None:
    target = Slow(lambda _: 0.5)
    records = driven(planned(10, every_s=0.0), target, max_concurrency=2)
    assert target.most == 2
    assert [r.sent_s for r in records] == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], abs=1e-9)
    assert records[-1].times_s[0] - records[-1].intended_s == pytest.approx(4.5)


def test_a_closed_loop_counts_its_time_out_from_the_actual_send() -> None:
    records = driven(planned(10, every_s=0.0), Slow(lambda _: 0.5), max_concurrency=1, timeout_s=2.0)
    assert not any(r.failure for r in records) and records[-1].sent_s == pytest.approx(9.0)


def test_a_request_without_an_end_times_out_from_its_intended_send_and_keeps_what_came() -> None:
    records = driven(planned(3), Slow(lambda p: 1.0, gap_s=math.inf), timeout_s=5.0)
    assert [r.failure for r in records] == ["timeout"] * 3
    assert [r.ended_s for r in records] == pytest.approx([5.0, 6.0, 7.0])
    assert [r.times_s for r in records] == [pytest.approx([1.0]), pytest.approx([2.0]), pytest.approx([3.0])]
    assert "5 s" in records[0].detail


def test_a_stop_ends_the_sending_and_gives_the_rest_a_grace() -> None:
    async def main() -> tuple[list[Record], float]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(4.5, stop.set)
        target = Slow(lambda p: 0.2 if p.index < 3 else 100.0 if p.index == 3 else 1.0)
        settings = DriveSettings(grace_s=2.0)
        return await drive(planned(10), target, settings, stop=stop), asyncio.get_running_loop().time()

    records, ended_s = run_virtual(main())
    assert [r.failure for r in records] == ["", "", "", "timeout", "", *["unsent"] * 5]
    assert ended_s == pytest.approx(6.5) and records[3].ended_s == pytest.approx(6.5)
    assert "stopped" in records[3].detail and all(r.sent_s is None for r in records[5:])


def test_a_stop_while_it_drains_ends_the_wait() -> None:
    async def main() -> float:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(10.0, stop.set)
        await drive(planned(2), Slow(lambda _: math.inf), DriveSettings(grace_s=1.0), stop=stop)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(11.0)


def test_progress_adds_up_and_the_last_report_is_the_end() -> None:
    async def main() -> list[Progress]:
        seen: list[Progress] = []
        target = Slow(lambda p: 0.2 if p.index % 2 else math.inf)
        await drive(planned(10), target, DriveSettings(timeout_s=3.0), seen.append)
        return seen

    seen = run_virtual(main())
    assert all(p.sent == p.running + p.done + p.failed for p in seen)
    assert [p.sent for p in seen] == sorted(p.sent for p in seen) and len(seen) > 5
    last = seen[-1]
    assert (last.planned, last.sent, last.done, last.failed, last.running) == (10, 10, 5, 5, 0)


def test_a_target_with_a_bug_ends_the_run_with_that_error() -> None:
    class Buggy(Slow):
        async def send(self, planned: Planned, record: Record) -> None:
            await super().send(planned, record)
            raise ZeroDivisionError("a bug")

    async def main() -> float:
        with pytest.raises(ZeroDivisionError):
            await drive(planned(100), Buggy(lambda _: 1.0), DriveSettings())
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(1.5)


def test_a_cancelled_run_leaves_nothing_behind() -> None:
    async def main() -> None:
        target = Slow(lambda _: math.inf)
        run = asyncio.create_task(drive(planned(5), target, DriveSettings()))
        await asyncio.sleep(3.5)
        run.cancel()
        await asyncio.wait({run}, timeout=10)
        assert run.cancelled() and target.busy == 0 and asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


def test_an_empty_schedule_is_a_run_without_records() -> None:
    assert driven([], Slow(lambda _: 1.0)) == []


def late(lags_s: Sequence[float], ttft_s: float = 0.1) -> list[Record]:
    return [
        Record(i, 10, 2, float(i), sent_s=i + lag_s, times_s=[i + ttft_s], counts=[1]) for i, lag_s in enumerate(lags_s)
    ]


def test_the_lag_is_of_those_that_were_sent() -> None:
    lags_s = [i / 1000 for i in range(40)]
    lag = schedule_lag([*late(lags_s), Record(99, 10, 2, 1.0)])
    assert lag is not None and lag.max_s == pytest.approx(0.039)
    quantiles = np.quantile(lags_s, [0.5, 0.9, 0.99])
    assert [lag.p50_s, lag.p90_s, lag.p99_s] == pytest.approx(list(quantiles))
    assert schedule_lag([Record(0, 10, 2, 0.0)]) is None


def test_a_late_client_says_so_above_ten_milliseconds_or_a_hundredth_of_the_ttft() -> None:
    assert degraded(late([0.0] * 90 + [0.5] * 10)).startswith("the client was late itself")
    assert not degraded(late([0.009] * 100)) and degraded(late([0.011] * 100))
    assert lag_limit_s(late([0.011] * 100, ttft_s=2.0)) == pytest.approx(0.02)
    assert not degraded(late([0.011] * 100, ttft_s=2.0))
    assert not degraded(late([0.011] * 100), limit_s=0.012)


def test_a_closed_loop_has_no_schedule_to_be_late_for() -> None:
    assert not degraded(late([5.0] * 100), closed=True)
