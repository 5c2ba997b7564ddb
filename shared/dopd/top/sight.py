"""What is known of the cluster from its own messages. Pure.

Consumes states, windows, forecasts and decisions as they are heard, with the time; produces the `Sight` that is drawn.
A word holds for as long as it says; then whoever said it is gone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dopd_proto.control import DecisionRecord
from dopd_proto.telemetry import ArrivalWindow, Forecast, GatewayState, OutcomeWindow, WorkerState

PACE_S = 1.0
"""Steps per second are counted over at least so long."""
WINDOWS_HELD = 2.5
"""A window counts until so many of its lengths after its end."""


@dataclass(slots=True)
class Seen:
    """One worker. `steps_per_s` is over the time since `since_s`, None before there is one."""

    state: WorkerState
    heard_s: float
    since_s: float
    steps: int
    steps_per_s: float | None = None

    def heard(self, state: WorkerState, now_s: float) -> None:
        """A newer word of the same life."""
        self.state, self.heard_s = state, now_s
        if now_s - self.since_s >= PACE_S:
            self.steps_per_s = (state.steps - self.steps) / (now_s - self.since_s)
            self.since_s, self.steps = now_s, state.steps


@dataclass(frozen=True, slots=True)
class Rates:
    """The last window of all gateways. Means in seconds, None where nothing was completed."""

    age_s: float
    length_s: float
    requests_per_s: float
    tokens_per_s: float
    completed: int
    failed: int
    ttft_s: float | None
    tpot_s: float | None


@dataclass(slots=True)
class Sight:
    """All that was heard. Times are of this process' clock; windows end on that of their gateway."""

    connected: bool = True
    workers: dict[str, Seen] = field(default_factory=dict)
    gateways: dict[str, tuple[GatewayState, float]] = field(default_factory=dict)
    arrivals: dict[str, tuple[ArrivalWindow, float]] = field(default_factory=dict)
    outcomes: dict[str, tuple[OutcomeWindow, float]] = field(default_factory=dict)
    forecast: tuple[Forecast, float] | None = None
    decisions: tuple[DecisionRecord, ...] | None = None
    """The newest last; None while no planner answers."""

    def worker(self, state: WorkerState, now_s: float) -> None:
        """A worker's word."""
        known = self.workers.get(state.worker_id)
        if known is not None and known.state.incarnation == state.incarnation:
            known.heard(state, now_s)
        else:
            self.workers[state.worker_id] = Seen(state, now_s, now_s, state.steps)

    def gateway(self, state: GatewayState, now_s: float) -> None:
        """A gateway's word."""
        self.gateways[state.gateway_id] = (state, now_s)

    def arrived(self, window: ArrivalWindow, now_s: float) -> None:
        """A gateway's last window of arrivals."""
        self.arrivals[window.gateway_id] = (window, now_s)

    def ended(self, window: OutcomeWindow, now_s: float) -> None:
        """A gateway's last window of outcomes."""
        self.outcomes[window.gateway_id] = (window, now_s)

    def expected(self, forecast: Forecast, now_s: float) -> None:
        """The newest forecast, which of those made together has the shortest horizon."""
        self.forecast = (forecast, now_s)

    def forget(self, now_s: float) -> None:
        """Whoever has been silent for longer than its lease."""
        self.workers = {w: seen for w, seen in self.workers.items() if now_s - seen.heard_s <= seen.state.lease_s}
        self.gateways = {g: (s, at_s) for g, (s, at_s) in self.gateways.items() if now_s - at_s <= s.lease_s}
        self.arrivals = {g: (w, at_s) for g, (w, at_s) in self.arrivals.items() if _holds(w, at_s, now_s)}
        if self.forecast is not None and now_s - self.forecast[1] > WINDOWS_HELD * self.forecast[0].bin_s:
            self.forecast = None
        self.outcomes = {g: (w, at_s) for g, (w, at_s) in self.outcomes.items() if _holds(w, at_s, now_s)}

    def rates(self, now_s: float) -> Rates | None:
        """What the last windows say; None before the first."""
        if not self.outcomes:
            return None
        windows = [window for window, _ in self.outcomes.values()]
        completed = sum(window.completed for window in windows)
        return Rates(
            age_s=now_s - max(at_s for _, at_s in self.outcomes.values()),
            length_s=max(window.end_s - window.start_s for window in windows),
            requests_per_s=_per_s((window, window.requests) for window, _ in self.arrivals.values()),
            tokens_per_s=_per_s((window, window.made_tokens) for window in windows),
            completed=completed,
            failed=sum(window.failed for window in windows),
            ttft_s=sum(window.gateway_ttft_s_sum for window in windows) / completed if completed else None,
            tpot_s=sum(window.tpot_s_sum for window in windows) / completed if completed else None,
        )

    @property
    def last_change(self) -> DecisionRecord | None:
        """The newest decision that moved somebody."""
        return next((record for record in reversed(self.decisions or ()) if record.changes), None)


def _holds(window: ArrivalWindow | OutcomeWindow, heard_s: float, now_s: float) -> bool:
    return now_s - heard_s <= WINDOWS_HELD * (window.end_s - window.start_s)


def _per_s(counts: Iterable[tuple[ArrivalWindow | OutcomeWindow, int]]) -> float:
    """Each gateway counts in windows of its own."""
    return sum(count / max(1e-9, window.end_s - window.start_s) for window, count in counts)
