"""`Past`: all that the live page remembers. Pure.

Consumes what an onlooker hears (`dopd.top.listen`), the workers that the gateway knows, and requests that are over;
produces what `snapshot.py` tells. Every part is bounded, and none grows with the load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dopd.slo import Slo
from dopd.top.sight import Sight
from dopd_gateway.core import Request
from dopd_gateway.live.bins import Bins
from dopd_gateway.live.decisions import rows
from dopd_gateway.live.lanes import Lanes
from dopd_gateway.live.recent import Recent
from dopd_gateway.live.traffic import Traffic
from dopd_gateway.over import Outcome
from dopd_proto.control import DecisionRecord
from dopd_proto.telemetry import ArrivalWindow, Forecast, GatewayState, OutcomeWindow, WorkerState


@dataclass(frozen=True, slots=True)
class About:
    """Whose page it is. `since_s` is when this life of the gateway began, and with it what it remembers."""

    gateway_id: str
    incarnation: str
    model: str
    since_s: float
    slo: Slo


@dataclass(slots=True)
class Past:
    """What was heard and counted so far. `sight` is the present, as `dopd top` has it."""

    about: About
    traffic: Traffic
    bins: Bins
    sight: Sight = field(default_factory=Sight)
    lanes: Lanes = field(default_factory=Lanes)
    recent: Recent = field(default_factory=Recent)
    decisions: list[dict[str, Any]] | None = None

    @classmethod
    def since(cls, about: About, window_s: float) -> "Past":
        """Nothing yet; `window_s` is how long gateways count arrivals at a time."""
        return cls(about, Traffic(window_s), Bins.since(about.since_s))

    # --- an onlooker ----------------------------------------------------------------------------------------------

    def gateway(self, state: GatewayState, now_s: float) -> None:
        """A gateway's heartbeat, also our own."""
        self.sight.gateway(state, now_s)

    def arrived(self, window: ArrivalWindow, now_s: float) -> None:
        """What came to a gateway."""
        self.sight.arrived(window, now_s)
        self.traffic.arrived(window, now_s)

    def ended(self, window: OutcomeWindow, now_s: float) -> None:
        """What came of it."""
        self.sight.ended(window, now_s)

    def expected(self, forecast: Forecast, now_s: float) -> None:
        """A forecast."""
        self.sight.expected(forecast, now_s)
        self.traffic.expected(forecast, now_s)

    # --- the gateway itself ---------------------------------------------------------------------------------------

    def over(self, request: Request, outcome: Outcome) -> None:
        """One of our own requests has ended."""
        self.bins.at(outcome.ended_s).add(outcome.end, outcome.ttft_s, outcome.tpot_s, outcome.met)
        self.recent.over(request, outcome)

    def look(self, known: Mapping[str, tuple[WorkerState, float]], waiting: int, connected: bool, now_s: float) -> None:
        """Every now and then: the workers that the gateway knows, and how many requests wait."""
        self.sight.connected = connected
        self.lanes.look(known, self.sight, now_s)
        present = self.bins.at(now_s)
        present.waiting = max(present.waiting, waiting)
        if connected:
            self.sight.forget(now_s)

    def decided(self, records: tuple[DecisionRecord, ...] | None) -> None:
        """The planner's last decisions, None when it does not answer."""
        if records != self.sight.decisions:
            self.decisions = None if records is None else rows(records)
        self.sight.decisions = records
