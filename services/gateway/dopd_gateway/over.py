"""What is told of a request that is over: a log line, its numbers, its spans; and what came of it.

Consumes the request with its timeline and its end; produces one call of each listener. None of them raises.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dopd.errors import RequestError
from dopd.obs.log import get_logger
from dopd_gateway.core import End, Request

OnEnded = Callable[[Request, End, RequestError | None], None]


class Outcome(NamedTuple):
    """Of one request. Latencies are on the gateway's own clock from end to end.

    `ttft_s` is None without a token; `tpot_s` without a second one, and for what was not completed. `late` and `slow`
    say which target a completed one missed, `code` is that of its error.
    """

    end: End
    ended_s: float
    ttft_s: float | None
    tpot_s: float | None
    late: bool
    slow: bool
    code: str

    @property
    def met(self) -> bool:
        """Whether it was completed within both of its targets."""
        return self.end in ("stop", "length") and self.ttft_s is not None and not (self.late or self.slow)


def outcome_of(request: Request, end: End, error: RequestError | None) -> Outcome:
    """What came of a request that is over."""
    ended_s, first_s = request.timeline.ended_s, request.timeline.first_came_s
    assert ended_s is not None  # it is over
    completed, later = end in ("stop", "length"), len(request.output) - 1
    ttft_s = None if first_s is None else first_s - request.arrived_s
    tpot_s = (ended_s - first_s) / later if completed and first_s is not None and later > 0 else None
    slo = request.inbound.slo
    return Outcome(
        end, ended_s, ttft_s, tpot_s,
        late=completed and ttft_s is not None and ttft_s > slo.ttft_s,
        slow=tpot_s is not None and tpot_s > slo.tpot_s,
        code=error.code if error is not None else "",
    )  # fmt: skip


def all_of(listeners: Sequence[OnEnded]) -> OnEnded:
    """One listener for `Gateway`."""

    def ended(request: Request, end: End, error: RequestError | None) -> None:
        for listener in listeners:
            listener(request, end, error)

    return ended


def log_ended(request: Request, end: End, error: RequestError | None) -> None:
    """One line of level DEBUG, an overload would fill the disk otherwise. Lengths and times, never what was said."""
    outcome = outcome_of(request, end, error)
    get_logger().debug(
        "request_ended",
        request_id=request.request_id,
        trace_id=request.inbound.trace_id,
        end=end,
        code=outcome.code or None,
        isl_tokens=len(request.inbound.tokens),
        osl_tokens=len(request.output),
        attempts=request.attempt,
        gateway_ttft_s=None if outcome.ttft_s is None else round(outcome.ttft_s, 6),
        duration_s=round(outcome.ended_s - request.arrived_s, 6),
    )
