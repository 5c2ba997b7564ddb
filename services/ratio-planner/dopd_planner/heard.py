"""What workers, gateways and the forecaster have said of late, as the planner keeps it.

Consumes their messages and the time; produces the states that still hold, and the view that policies are shown.
"""

from collections.abc import Mapping

from dopd.cluster import ClusterView
from dopd.runtime.clock import Runtime
from dopd_planner import sight
from dopd_planner.sight import Pace
from dopd_proto.base import Role
from dopd_proto.telemetry import Forecast, GatewayState, WorkerState


class Heard:
    """A word holds for as long as it says, counted from when it was heard."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._states: dict[str, tuple[WorkerState, float]] = {}
        self._gateways: dict[str, tuple[GatewayState, float]] = {}
        self._paces: dict[str, Pace] = {}
        self.forecast: Forecast | None = None

    def worker(self, state: WorkerState) -> bool:
        """Whether it is news: not overtaken by a newer one, nor late words of an earlier life."""
        known = self._states.get(state.worker_id)
        if known is not None and state.sent_s < known[0].sent_s:
            return False
        self._states[state.worker_id] = (state, self._runtime.now())
        self._paces.setdefault(state.worker_id, Pace()).saw(state)
        return True

    def gateway(self, state: GatewayState) -> None:
        """A gateway's word."""
        self._gateways[state.gateway_id] = (state, self._runtime.now())

    def live(self) -> dict[str, WorkerState]:
        """The workers whose last word still holds."""
        now_s = self._runtime.now()
        return {w: state for w, (state, heard_s) in self._states.items() if now_s - heard_s <= state.lease_s}

    def view(
        self, states: Mapping[str, WorkerState], pins: Mapping[str, Role], leaving: Mapping[str, Role]
    ) -> ClusterView:
        """The cluster as it will be when all commands are obeyed."""
        now_s = self._runtime.now()
        gateways = [state for state, heard_s in self._gateways.values() if now_s - heard_s <= state.lease_s]
        return sight.cluster_view(states, gateways, self._paces, pins, leaving)
