"""What workers, gateways and the forecaster have said of late, as the planner keeps it.

Consumes their messages and the time; produces the states that still hold, and the view that policies are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from dopd.cluster import ClusterView
from dopd.policy.base import ForecastView
from dopd.runtime.clock import Runtime
from dopd_planner import sight
from dopd_planner.sight import Pace
from dopd_proto.base import Role
from dopd_proto.telemetry import Forecast, GatewayState, WorkerState

APART_S = 1.0
"""Clocks that differ by less are taken for the same: so long a message may take."""


@dataclass(slots=True)
class _Known:
    """`state` has the times of our clock; `sent_s` is the worker's. Its clock is `ahead_s` of ours."""

    state: WorkerState
    heard_s: float
    sent_s: float
    ahead_s: float

    def holds(self, now_s: float) -> bool:
        return now_s - self.heard_s <= self.state.lease_s


class Heard:
    """A word holds for as long as it says, counted from when it was heard.

    Clocks of machines may lie apart: one was set, and what runs on it was started anew. A worker's times are told in
    ours.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._states: dict[str, _Known] = {}
        self._gateways: dict[str, tuple[GatewayState, float]] = {}
        self._paces: dict[str, Pace] = {}
        self.forecast: Forecast | None = None
        self._forecast_s = 0.0

    def worker(self, state: WorkerState) -> bool:
        """Whether it is news: not overtaken by a newer one, nor late words of an earlier life."""
        now_s, known = self._runtime.now(), self._states.get(state.worker_id)
        same = known is not None and known.state.incarnation == state.incarnation
        if known is not None and state.sent_s < known.sent_s and (same or known.holds(now_s)):
            return False
        # The quickest message says best how far its clock is ahead.
        ahead_s = max(state.sent_s - now_s, known.ahead_s if known is not None and same else float("-inf"))
        self._states[state.worker_id] = _Known(_told(state, ahead_s), now_s, state.sent_s, ahead_s)
        self._paces.setdefault(state.worker_id, Pace()).saw(state)
        return True

    def ahead_s(self, worker_id: str) -> float:
        """How far this worker's clock is ahead of ours, 0 where they are about the same."""
        known = self._states.get(worker_id)
        return known.ahead_s if known is not None and abs(known.ahead_s) >= APART_S else 0.0

    def gateway(self, state: GatewayState) -> None:
        """A gateway's word."""
        self._gateways[state.gateway_id] = (state, self._runtime.now())

    def forecasts(self, forecast: Forecast) -> None:
        """The forecaster's word: of those made together the one with the shortest horizon comes last, and is kept."""
        self.forecast, self._forecast_s = forecast, self._runtime.now()

    def expected(self) -> ForecastView | None:
        """What is expected, from when it was heard on: by our clock, whatever the forecaster's is."""
        view = sight.forecast_view(self.forecast)
        return None if view is None else replace(view, start_s=self._forecast_s)

    def live(self) -> dict[str, WorkerState]:
        """The workers whose last word still holds."""
        now_s = self._runtime.now()
        return {worker_id: known.state for worker_id, known in self._states.items() if known.holds(now_s)}

    def last(self, worker_id: str) -> WorkerState:
        """Its last word, whether it holds or not. Raises KeyError."""
        return self._states[worker_id].state

    def view(
        self, states: Mapping[str, WorkerState], pins: Mapping[str, Role], leaving: Mapping[str, Role]
    ) -> ClusterView:
        """The cluster as it will be when all commands are obeyed."""
        now_s = self._runtime.now()
        gateways = [state for state, heard_s in self._gateways.values() if now_s - heard_s <= state.lease_s]
        return sight.cluster_view(states, gateways, self._paces, pins, leaving)


def _told(state: WorkerState, ahead_s: float) -> WorkerState:
    """With the times of our clock."""
    if abs(ahead_s) < APART_S:
        return state
    drained_at_s = None if state.drained_at_s is None else state.drained_at_s - ahead_s
    return msgspec.structs.replace(
        state, sent_s=state.sent_s - ahead_s, accepting_at_s=state.accepting_at_s - ahead_s, drained_at_s=drained_at_s
    )
