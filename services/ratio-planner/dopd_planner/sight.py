"""What a planner is shown, from what it has heard. Pure.

Consumes the states of workers and gateways, and forecasts; produces the `ClusterView` and `ForecastView` of a round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import ForecastView, SeriesView
from dopd_proto.base import Role
from dopd_proto.telemetry import Forecast, GatewayState, WorkerState

PACE_S = 2.0
"""A step's time is the mean over so long."""


@dataclass(slots=True)
class Pace:
    """A decode worker's time per step while it does nothing but decode; 0 when it is not known."""

    since_s: float = 0.0
    steps: int = 0
    step_s: float = 0.0

    def saw(self, state: WorkerState) -> None:
        """One more word of the worker's."""
        if not state.decoding or state.running != state.decoding or state.queued_prefill_tokens:
            self.since_s = self.step_s = 0.0
        elif not self.since_s or state.steps < self.steps:
            self.since_s, self.steps = state.sent_s, state.steps
        elif state.sent_s - self.since_s >= PACE_S and state.steps > self.steps:
            self.step_s = (state.sent_s - self.since_s) / (state.steps - self.steps)
            self.since_s, self.steps = state.sent_s, state.steps


def cluster_view(
    states: Mapping[str, WorkerState],
    gateways: Iterable[GatewayState],
    paces: Mapping[str, Pace],
    pins: Mapping[str, Role],
    coming: Mapping[str, Role],
) -> ClusterView:
    """The cluster with all commands obeyed: `coming` are the roles of changes under way."""
    present = list(gateways)
    return ClusterView(
        tuple(
            WorkerView(
                worker_id=s.worker_id, incarnation=s.incarnation, role=coming.get(s.worker_id, s.role), epoch=s.epoch,
                serving=s.phase in ("serving", "stalled"), running=s.running, waiting=s.waiting, decoding=s.decoding,
                queued_prefill_tokens=s.queued_prefill_tokens, context_tokens=s.context_tokens,
                kv_used_tokens=s.kv_used_tokens, kv_total_tokens=s.kv_total_tokens, kv_domain=s.kv_domain,
                drained=s.drained_at_s is not None and s.worker_id not in coming, pinned=s.worker_id in pins,
                step_s=paces[s.worker_id].step_s if s.worker_id in paces else 0.0,
            )
            for _, s in sorted(states.items())
        ),
        waiting_prefill_tokens=sum(g.waiting_prefill_tokens for g in present),
        waiting_decodes=sum(g.waiting_decodes for g in present),
        late_prefill_tokens=sum(g.late_prefill_tokens for g in present),
    )  # fmt: skip


def forecast_view(forecast: Forecast | None) -> ForecastView | None:
    """As policies see it."""
    if forecast is None:
        return None
    levels = forecast.quantile_levels
    return ForecastView(
        requests_per_s=forecast.requests_per_s,
        isl_tokens_mean=forecast.isl_tokens_mean,
        isl_tokens_var=forecast.isl_tokens_var,
        osl_tokens_mean=forecast.osl_tokens_mean,
        start_s=forecast.start_s,
        horizon_s=forecast.horizon_s,
        model=forecast.model,
        series={
            one.name: SeriesView(
                one.point, tuple(zip(levels, one.quantiles, strict=False)), one.model, one.error, one.reason
            )
            for one in forecast.series
        },
    )
