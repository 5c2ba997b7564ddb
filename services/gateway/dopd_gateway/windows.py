"""Counting for the control loop: arrivals on arrival, outcomes on outcome, a message per window.

Consumes requests as they come, run and end; produces `ArrivalWindow`s and `OutcomeWindow`s.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dopd_gateway.core import Request
from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow

LONGEST_BITS = 32


@dataclass(slots=True)
class Windows:
    """The running window of one gateway. `made_before` is what its requests had made when it began (see `_made`)."""

    gateway_id: str
    incarnation: str
    start_s: float
    requests: int = 0
    isl_sum: int = 0
    isl_square_sum: int = 0
    osl_limit_sum: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * LONGEST_BITS)
    made_before: tuple[int, int] = (0, 0)
    made_ended: tuple[int, int] = (0, 0)
    completed: int = 0
    failed: int = 0
    osl_sum: int = 0
    ttft_sum: float = 0.0
    tpot_sum: float = 0.0
    missed_tokens: int = 0

    def arrived(self, isl_tokens: int, max_tokens: int) -> None:
        """A request has come in."""
        self.requests += 1
        self.isl_sum += isl_tokens
        self.isl_square_sum += isl_tokens * isl_tokens
        self.osl_limit_sum += max_tokens
        self.histogram[isl_tokens.bit_length()] += 1

    def left(self, request: Request, completed: bool) -> None:
        """A request has ended."""
        self.missed_tokens += request.missed_tokens
        self.made_ended = _sum(self.made_ended, _made(request))
        if not completed or request.first_s is None:
            self.failed += 1
            return
        self.completed += 1
        self.osl_sum += len(request.output)
        self.ttft_sum += request.first_s - request.arrived_s
        self.tpot_sum += (request.last_s - request.first_s) / max(1, len(request.output) - 1)

    def close(self, now_s: float, running: Iterable[Request]) -> tuple[ArrivalWindow, OutcomeWindow, "Windows"]:
        """The messages of the window that ends now, and the next window. `running` have not ended."""
        made_now = (0, 0)
        for request in running:
            made_now = _sum(made_now, _made(request))
        made = (self.made_ended[n] + made_now[n] - self.made_before[n] for n in range(2))
        counted = max((bits + 1 for bits, count in enumerate(self.histogram) if count), default=0)
        arrivals = ArrivalWindow(
            gateway_id=self.gateway_id, incarnation=self.incarnation, start_s=self.start_s, end_s=now_s,
            requests=self.requests, isl_tokens_sum=self.isl_sum, isl_tokens_square_sum=self.isl_square_sum,
            osl_tokens_limit_sum=self.osl_limit_sum, isl_tokens_histogram=tuple(self.histogram[:counted]),
        )  # fmt: skip
        outcomes = OutcomeWindow(
            gateway_id=self.gateway_id, incarnation=self.incarnation, start_s=self.start_s, end_s=now_s,
            completed=self.completed, failed=self.failed, osl_tokens_sum=self.osl_sum,
            gateway_ttft_s_sum=self.ttft_sum, tpot_s_sum=self.tpot_sum, kv_miss_tokens=self.missed_tokens,
            made_tokens=next(made), made_context_tokens=next(made),
        )  # fmt: skip
        return arrivals, outcomes, Windows(self.gateway_id, self.incarnation, now_s, made_before=made_now)


def _made(request: Request) -> tuple[int, int]:
    """Output tokens so far, and the sum of the contexts that they were made from."""
    osl = len(request.output)
    return osl, osl * len(request.inbound.tokens) + osl * (osl - 1) // 2


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]
