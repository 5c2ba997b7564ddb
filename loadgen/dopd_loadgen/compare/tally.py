"""Counts misses while a run goes on, so that one that is worse than the best known can end early.

Consumes records as they are sent and settled; produces the number of misses, certain ones only, or `Enough`.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from dopd.errors import DopdError
from dopd.slo import Slo, met, tpot_s
from dopd_loadgen.model import Record
from dopd_loadgen.report.metrics import failure_of

MARGIN_S = 1.0
"""A first token's way to its record is far shorter than this."""


class Enough(DopdError):
    """More misses than were allowed."""


def stop(missed: int) -> NoReturn:
    """End the run."""
    raise Enough(f"{missed} misses")


class Tally:
    """Misses among the requests that are due from `start_s` to `end_s`, both included, as in the figures.

    With more than `limit` misses `enough` is called.
    """

    def __init__(self, slo: Slo, start_s: float = 0.0, end_s: float = math.inf, limit: float = math.inf) -> None:
        self.limit = limit
        self.enough: Callable[[int], NoReturn] = stop
        self._slo, self._start_s, self._end_s = slo, start_s, end_s
        self._open: dict[int, Record] = {}
        self._order: deque[Record] = deque()
        self._missed: set[int] = set()

    @property
    def missed(self) -> int:
        """Certain misses so far."""
        return len(self._missed)

    def sent(self, record: Record) -> None:
        self._look_at_first_tokens(record.intended_s)
        self._open[record.index] = record
        self._order.append(record)

    def settled(self, record: Record) -> None:
        del self._open[record.index]
        if not good(record, self._slo):
            self._miss(record)

    def _look_at_first_tokens(self, now_s: float) -> None:
        due_s = now_s - self._slo.ttft_s - MARGIN_S
        while self._order and self._order[0].intended_s < due_s:
            record = self._order.popleft()
            if record.index in self._open and not record.times_s:
                self._miss(record)

    def _miss(self, record: Record) -> None:
        if self._start_s <= record.intended_s <= self._end_s:
            self._missed.add(record.index)
            if len(self._missed) > self.limit:
                self.enough(len(self._missed))

    def outlook(self, now_s: float) -> tuple[int, int]:
        """Misses if the run were judged now, and requests that are open.

        An open request is judged by what came of it: no first token in time, or tokens too far apart so far.
        """
        judged = (r for r in self._open.values() if self._start_s <= r.intended_s <= self._end_s)
        behind = {r.index for r in judged if _behind(r, self._slo, now_s)}
        return len(self._missed | behind), len(self._open)


def good(record: Record, slo: Slo) -> bool:
    """Whether a settled request met every target and brought every token."""
    if failure_of(record) or not record.times_s:
        return False
    return all(met(slo, record.intended_s, record.times_s[0], record.times_s[-1], sum(record.counts)))


def _behind(record: Record, slo: Slo, now_s: float) -> bool:
    """Whether an open request is late already, or will be at the pace of its tokens so far."""
    times_s, made = record.times_s, len(record.times_s)
    if not made:
        return now_s - record.intended_s > slo.ttft_s
    # The way from prefill to decode is in the first gap, and does not come again.
    pace_s = (times_s[-1] - times_s[1]) / (made - 2) if made > 2 else 0.0
    end_s = now_s + (record.osl_tokens - made) * pace_s
    return times_s[0] - record.intended_s > slo.ttft_s or tpot_s(times_s[0], end_s, record.osl_tokens) > slo.tpot_s
