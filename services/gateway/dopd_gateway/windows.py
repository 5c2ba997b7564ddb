"""Counting for the control loop: arrivals on arrival, outcomes on outcome, a message per window."""

from dataclasses import dataclass

from dopd_gateway.core import Request
from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow


@dataclass(slots=True)
class Windows:
    """The running window of one gateway."""

    gateway_id: str
    incarnation: str
    start_s: float
    requests: int = 0
    isl_sum: int = 0
    isl_square_sum: int = 0
    osl_limit_sum: int = 0
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

    def left(self, request: Request, completed: bool) -> None:
        """A request has ended."""
        self.missed_tokens += request.missed_tokens
        if not completed or request.first_s is None:
            self.failed += 1
            return
        self.completed += 1
        self.osl_sum += len(request.output)
        self.ttft_sum += request.first_s - request.arrived_s
        self.tpot_sum += (request.last_s - request.first_s) / max(1, len(request.output) - 1)

    def close(self, now_s: float) -> tuple[ArrivalWindow, OutcomeWindow]:
        """The messages of the window that ends now."""
        arrivals = ArrivalWindow(
            gateway_id=self.gateway_id, incarnation=self.incarnation, start_s=self.start_s, end_s=now_s,
            requests=self.requests, isl_tokens_sum=self.isl_sum, isl_tokens_square_sum=self.isl_square_sum,
            osl_tokens_limit_sum=self.osl_limit_sum,
        )  # fmt: skip
        outcomes = OutcomeWindow(
            gateway_id=self.gateway_id, incarnation=self.incarnation, start_s=self.start_s, end_s=now_s,
            completed=self.completed, failed=self.failed, osl_tokens_sum=self.osl_sum,
            gateway_ttft_s_sum=self.ttft_sum, tpot_s_sum=self.tpot_sum, kv_miss_tokens=self.missed_tokens,
        )  # fmt: skip
        return arrivals, outcomes
