"""The last requests that are over, with what each has gone through. Pure.

Consumes requests as they end; produces rows, a few per second at most, so that a busy gateway does no more than an idle
one. What was asked and answered is in none of them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dopd_gateway.core import Request
from dopd_gateway.over import Outcome
from dopd_gateway.timeline import Phase

KEPT, PER_S, MOST_PHASES = 12, 2, 40

Row = dict[str, Any]


@dataclass(slots=True)
class Ring:
    """The last `KEPT` of one kind, by a number that goes on counting."""

    rows: deque[tuple[int, Row]] = field(default_factory=lambda: deque(maxlen=KEPT))
    taken: int = 0
    _second: int = 0
    _in_second: int = 0

    def room(self, now_s: float) -> bool:
        """Whether one more may be taken in this second; it is then counted."""
        if int(now_s) != self._second:
            self._second, self._in_second = int(now_s), 0
        self._in_second += 1
        return self._in_second <= PER_S

    def put(self, row: Row) -> None:
        """In the place of the oldest one."""
        self.taken += 1
        self.rows.append((self.taken, row))


@dataclass(slots=True)
class Recent:
    """Those that met their targets, and those that did not: at a time when all goes well few of the others come."""

    met: Ring = field(default_factory=Ring)
    missed: Ring = field(default_factory=Ring)

    def over(self, request: Request, outcome: Outcome) -> None:
        """A request has ended; most are only looked at."""
        ring = self.met if outcome.met else self.missed
        if ring.room(outcome.ended_s):
            ring.put(row(request, outcome))


def row(request: Request, outcome: Outcome) -> Row:
    """For the page. Times of phases are seconds since the arrival, on the clock of the process that is named."""
    made: Row = {
        "id": request.request_id,
        "at_s": round(request.arrived_s, 3),
        "total_s": round(outcome.ended_s - request.arrived_s, 4),
        "isl": len(request.inbound.tokens),
        "osl": len(request.output),
        "attempts": request.attempt,
        "end": outcome.end,
        "met": outcome.met,
        "phases": phases(request.timeline.phases(outcome.ended_s), request.arrived_s),
    }
    if outcome.code:
        made["code"] = outcome.code
    if outcome.ttft_s is not None:
        made["ttft_s"] = round(outcome.ttft_s, 4)
    if outcome.tpot_s is not None:
        made["tpot_s"] = round(outcome.tpot_s, 5)
    if trace := request.inbound.trace_id:
        made["trace"] = trace
    return made


def phases(gone_through: Sequence[Phase], arrived_s: float) -> list[tuple[str, float, float, str]]:
    """Name, start, end and process of each; of very many, the first and the last."""
    if len(gone_through) > MOST_PHASES:
        gone_through = [*gone_through[: MOST_PHASES // 2], *gone_through[-MOST_PHASES // 2 :]]
    return [
        (one.name, round(one.start_s - arrived_s, 4), round(one.end_s - arrived_s, 4), one.place.where)
        for one in gone_through
    ]
