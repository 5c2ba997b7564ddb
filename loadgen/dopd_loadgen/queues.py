"""What waits and what runs over time, sampled from what gateways and workers say of themselves in a virtual run.

Consumes states off the bus; produces `QueueSample`s, at most `STEPS` over the schedule.
"""

from dopd.bus import Delivery
from dopd.runtime.clock import Runtime
from dopd_loadgen.model import QueueSample
from dopd_proto.telemetry import GatewayState, WorkerState

STEPS = 200
LEAST_STEP_S = 0.5
"""Heartbeats are about as far apart; nothing finer is to be seen."""


class Queues:
    """Sums of the latest states. Zero is when it is made."""

    def __init__(self, runtime: Runtime, span_s: float) -> None:
        self._runtime, self._zero_s = runtime, runtime.now()
        self._step_s = max(span_s / STEPS, LEAST_STEP_S)
        self._next_s = 0.0
        self._workers: dict[str, WorkerState] = {}
        self._waiting: dict[str, int] = {}
        self.samples: list[QueueSample] = []

    def saw_worker(self, delivery: Delivery[WorkerState]) -> None:
        """Take a worker's state, and a sample when it is time for one."""
        self._workers[delivery.message.worker_id] = delivery.message
        at_s = self._runtime.now() - self._zero_s
        if at_s < self._next_s:
            return
        self._next_s = (at_s // self._step_s + 1) * self._step_s
        states = self._workers.values()
        self.samples.append(
            QueueSample(
                at_s,
                sum(self._waiting.values()),
                sum(state.queued_prefill_tokens for state in states),
                sum(state.decoding for state in states),
                sum(state.context_tokens for state in states),
            )
        )

    def saw_gateway(self, delivery: Delivery[GatewayState]) -> None:
        """Take a gateway's heartbeat."""
        self._waiting[delivery.message.gateway_id] = delivery.message.waiting
