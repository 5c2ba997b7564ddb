"""A gateway's past for tests of its live page: states, windows, requests and decisions as they would come."""

from msgspec.structs import replace

from dopd.slo import Slo
from dopd_gateway.core import Request
from dopd_gateway.live import KEEP_S
from dopd_gateway.live.lanes import Lanes
from dopd_gateway.live.past import About, Past
from dopd_gateway.over import outcome_of
from dopd_gateway.stream import Inbound
from dopd_gateway.timeline import Place
from dopd_proto.base import Role
from dopd_proto.control import Change, DecisionRecord
from dopd_proto.request import Sampling
from dopd_proto.telemetry import ArrivalWindow, Forecast, GatewayState, OutcomeWindow, SeriesForecast, WorkerState

NOW_S = 1_763_692_800.0
LEVELS = (0.1, 0.5, 0.9, 0.95)


def worker(worker_id: str = "w1", role: Role = "decode", **fields: object) -> WorkerState:
    state = WorkerState(
        worker_id=worker_id, incarnation=f"{worker_id}-1", role=role, epoch=1, phase="serving", model="m",
        kv_domain="local", sent_s=NOW_S, lease_s=3.0, drained_at_s=0.0, kv_used_tokens=430, kv_total_tokens=1000,
    )  # fmt: skip
    return replace(state, **fields)


class Looking:
    """Lanes, and the gateway's knowledge second by second."""

    def __init__(self) -> None:
        self.past = Past.since(About("g1", "g1-1", "m", NOW_S, Slo(2.0, 0.08)), 10.0)
        self.now_s = NOW_S

    @property
    def lanes(self) -> Lanes:
        return self.past.lanes

    def see(self, *states: WorkerState, after_s: float = 1.0) -> None:
        self.now_s += after_s
        known = {state.worker_id: (state, self.now_s) for state in states}
        self.past.look(known, waiting=0, connected=True, now_s=self.now_s)

    def told(self, worker_id: str = "w1") -> list[tuple[float, str, str, str]]:
        return [(at_s - NOW_S, *rest) for at_s, *rest in self.lanes.by_worker[worker_id].stretches]  # type: ignore[misc]


def arrivals(gateway_id: str, end_s: float, requests: int) -> ArrivalWindow:
    return ArrivalWindow(
        gateway_id=gateway_id, incarnation="i", start_s=end_s - 10.0, end_s=end_s, requests=requests, isl_tokens_sum=1,
        isl_tokens_square_sum=1, osl_tokens_limit_sum=1,
    )  # fmt: skip


def forecast(start_s: float, horizon_s: float, rate: float, quantiles: tuple[float, ...] = ()) -> Forecast:
    series = (SeriesForecast(name="requests_per_s", model="ses", point=rate, quantiles=quantiles),) if quantiles else ()
    return Forecast(
        start_s=start_s, horizon_s=horizon_s, model="ses", requests_per_s=rate, isl_tokens_mean=1, isl_tokens_var=1,
        osl_tokens_mean=1, bin_s=10.0, quantile_levels=LEVELS, series=series,
    )  # fmt: skip


def over(past: Past, at_s: float, ttft_s: float = 0.1, tokens: int = 100, prompt: int = 5) -> None:
    """A request that ended at `at_s`."""
    request = Request("req-1", Inbound([77_000_001] * prompt, Sampling(max_tokens=9), Slo(2.0, 0.08), 0.0), at_s - 3.0)
    request.output[:] = [77_000_002] * tokens
    request.timeline.begin("queued", at_s - 3.0, Place("g1"))
    request.timeline.first_token(at_s - 3.0 + ttft_s, at_s - 3.0 + ttft_s, Place("w1", 1))
    for n in range(90):
        request.timeline.begin("decoding" if n % 2 else "sent", at_s - 2.9 + n / 100, Place(f"w{n}", 1))
    request.timeline.close(at_s)
    past.over(request, outcome_of(request, "length", None))


def decision(number: int, reason: str = "best_split", *changes: Change) -> DecisionRecord:
    return DecisionRecord(
        decision_id=f"d-{number}", at_s=NOW_S + number, term=1, why="plan", reason=reason, prefill=2, decode=2,
        changes=changes,
    )  # fmt: skip


def full() -> tuple[Past, float]:
    """As much as it ever remembers."""
    looking = Looking()
    past = looking.past
    for n in range(int(KEEP_S / 5)):
        states = [worker(f"w{w}", "prefill" if (n + w) % 7 else "decode") for w in range(30)]
        looking.see(*states, after_s=5.0)
        for k in range(3):
            over(past, looking.now_s + k, ttft_s=0.1 if k else 3.0)
        past.arrived(arrivals("g1", looking.now_s, n), looking.now_s)
        past.expected(forecast(looking.now_s, 10.0, 2.0, (1.0, 2.0, 3.0, 4.0)), looking.now_s)
    now_s = looking.now_s
    past.gateway(GatewayState(gateway_id="g1", incarnation="g1-1", sent_s=now_s, lease_s=3.0, waiting=4), now_s)
    past.ended(
        OutcomeWindow(gateway_id="g1", incarnation="i", start_s=now_s - 10, end_s=now_s, completed=1, failed=0,
                      osl_tokens_sum=1, gateway_ttft_s_sum=1.0, tpot_s_sum=1.0, made_tokens=100), now_s,
    )  # fmt: skip
    past.decided(tuple(decision(n, f"r{n}") for n in range(30)))
    return past, now_s
