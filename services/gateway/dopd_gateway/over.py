"""What is told of a request that is over: a log line, its numbers, its spans.

Consumes the request with its timeline and its end; produces one call of each listener. None of them raises.
"""

from collections.abc import Callable, Sequence

from dopd.errors import RequestError
from dopd.obs.log import get_logger
from dopd_gateway.core import End, Request

OnEnded = Callable[[Request, End, RequestError | None], None]


def all_of(listeners: Sequence[OnEnded]) -> OnEnded:
    """One listener for `Gateway`."""

    def ended(request: Request, end: End, error: RequestError | None) -> None:
        for listener in listeners:
            listener(request, end, error)

    return ended


def log_ended(request: Request, end: End, error: RequestError | None) -> None:
    """One line of level DEBUG, an overload would fill the disk otherwise. Lengths and times, never what was said."""
    ended_s, first_s = request.timeline.ended_s, request.timeline.first_came_s
    assert ended_s is not None  # it is over
    get_logger().debug(
        "request_ended",
        request_id=request.request_id,
        trace_id=request.inbound.trace_id,
        end=end,
        code=error.code if error is not None else None,
        isl_tokens=len(request.inbound.tokens),
        osl_tokens=len(request.output),
        attempts=request.attempt,
        gateway_ttft_s=None if first_s is None else round(first_s - request.arrived_s, 6),
        duration_s=round(ended_s - request.arrived_s, 6),
    )
