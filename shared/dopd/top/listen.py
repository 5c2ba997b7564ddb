"""Who looks on: hears what services say anyway, asks the planner what it decided, and commands nothing.

Consumes the bus; produces calls of an `Onlooker`, whatever it makes of them: `dopd top` a frame, the gateway its page.
"""

from typing import Protocol

from dopd.bus import Bus, Delivery, Subscription
from dopd.errors import DopdError
from dopd.runtime.clock import Runtime
from dopd_proto.control import DecisionRecord, DecisionsReply, DecisionsRequest
from dopd_proto.subjects import ARRIVALS, DECISIONS, FORECAST, GATEWAY_STATE, OUTCOMES, WORKER_STATE
from dopd_proto.telemetry import ArrivalWindow, Forecast, GatewayState, OutcomeWindow, WorkerState

ANSWER_S = 1.0


class Onlooker(Protocol):
    """What is told of the cluster but its workers; `now_s` is when it was heard."""

    def gateway(self, state: GatewayState, now_s: float) -> None:
        """A gateway's heartbeat."""

    def arrived(self, window: ArrivalWindow, now_s: float) -> None:
        """What came to a gateway."""

    def ended(self, window: OutcomeWindow, now_s: float) -> None:
        """What came of it."""

    def expected(self, forecast: Forecast, now_s: float) -> None:
        """Of forecasts made together the one with the shortest horizon comes last."""


class WorkersToo(Onlooker, Protocol):
    """Workers as well, for who does not know them already."""

    def worker(self, state: WorkerState, now_s: float) -> None:
        """A worker's heartbeat."""


async def listen(bus: Bus, who: Onlooker, runtime: Runtime) -> list[Subscription]:
    """Have it follow what gateways and the forecaster say."""

    def gateway(delivery: Delivery[GatewayState]) -> None:
        who.gateway(delivery.message, runtime.now())

    def arrived(delivery: Delivery[ArrivalWindow]) -> None:
        who.arrived(delivery.message, runtime.now())

    def ended(delivery: Delivery[OutcomeWindow]) -> None:
        who.ended(delivery.message, runtime.now())

    def expected(delivery: Delivery[Forecast]) -> None:
        who.expected(delivery.message, runtime.now())

    return [
        await bus.subscribe(GATEWAY_STATE.at(), gateway),
        await bus.subscribe(ARRIVALS.at(), arrived),
        await bus.subscribe(OUTCOMES.at(), ended),
        await bus.subscribe(FORECAST.at(), expected),
    ]


async def listen_to_all(bus: Bus, who: WorkersToo, runtime: Runtime) -> list[Subscription]:
    """Workers as well."""

    def worker(delivery: Delivery[WorkerState]) -> None:
        who.worker(delivery.message, runtime.now())

    return [await bus.subscribe(WORKER_STATE.at(), worker), *await listen(bus, who, runtime)]


async def last_decisions(bus: Bus, limit: int) -> tuple[DecisionRecord, ...] | None:
    """The planner's last decisions, the newest last; None when none answers."""
    try:
        return (await bus.request(DECISIONS.at(), DecisionsRequest(limit=limit), (DecisionsReply,), ANSWER_S)).decisions
    except DopdError:
        return None
