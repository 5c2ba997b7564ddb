"""DOPD (arXiv 2511.20982) as its authors released it, with seconds where their profiler mixes them with milliseconds.

Consumes views; produces placements and sizes (algorithms.md 1.7 to 1.11). Defects of the released planner other than
the unit are kept, since they are what was released: requests of an interval stand for concurrency, the ratio is that
for one decode worker, and the budget clamp favours prefill. Scheduling: a decode worker is chosen first; the prompt
is computed there when it is short or the prefill queue is long, otherwise by a prefill worker, one at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import ceil

from dopd.cluster import ClusterView
from dopd.perf.model import prefill_s, step_s
from dopd.perf.profile import Profile
from dopd.policy.base import BudgetSpec, Dispatch, ForecastView, Ground, Policy, RequestView, SegmentPlan
from dopd.policy.pools import Intervals, Sized, members, starts
from dopd.policy.static_split import Seat, least, mean_context, placed, room_of, seats_of, take
from dopd.slo import Slo

INTERVAL_S, IDLE_S = 10.0, 50.0
LOCAL_TOKENS, QUEUE_LIMIT = 511, 16
"""The released configurations have 8 or 16."""
LEAST_PROFILED_TOKENS = 100

# --- scheduling -------------------------------------------------------------------------------------------------------


class Remote:
    """First come first served; the state is the decode worker that was chosen last.

    `conditional` 0 computes no prompt on a decode worker; `kv_aware` 0 takes decode workers in turn (both as in the
    released configurations; 1 is the paper's).
    """

    def __init__(
        self,
        conditional: float = 1,
        kv_aware: float = 1,
        local_tokens: float = LOCAL_TOKENS,
        queue_limit: float = QUEUE_LIMIT,
    ) -> None:
        self._conditional, self._kv_aware = bool(conditional), bool(kv_aware)
        self._local_tokens, self._queue_limit = local_tokens, queue_limit

    def initial(self) -> str:
        return ""

    def step(
        self, state: str, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[str, Sequence[Dispatch], float | None]:
        seats = seats_of(cluster)
        prefill = [seats[w.worker_id] for w in cluster.serving("prefill", "mixed")]
        decode = [seats[w.worker_id] for w in cluster.serving("decode", "mixed")]
        room, mean_tokens = room_of(queue, cluster), mean_context(cluster)
        queued = sum(seat.worker.waiting for seat in prefill)
        dispatches: list[Dispatch] = []
        for request in sorted(queue, key=lambda r: -r.priority):
            target = self._target(decode, request, state)
            if target is None:
                break  # the decode worker comes first: its memory is what the prompt's KV is written to
            if request.kv_tokens or self._local(request, queued):
                source: Seat | None = target
            else:
                source = least(prefill, request, lambda seat: seat.prefill_tokens)
            if source is None or not (source is target or _take_room(request, source, room)):
                break
            dispatches.append(placed(request, *_segments(request, source, target)))
            state = target.worker.worker_id
            take(target, 0, request.isl_tokens, mean_tokens)
            if source is not target:
                take(source, request.uncached_tokens, 0, mean_tokens)
                queued += 1
        return state, dispatches, None

    def _local(self, request: RequestView, queued: int) -> bool:
        """The rule of conditional remote prefill (1.11). `uncached_tokens` is what its prefix hit leaves."""
        remote = request.uncached_tokens > self._local_tokens and queued < self._queue_limit
        return self._conditional and not remote

    def _target(self, decode: Sequence[Seat], request: RequestView, last: str) -> Seat | None:
        if self._kv_aware:
            most = max((_waiting(seat) for seat in decode), default=0)
            return least(decode, request, lambda seat: _usage(seat) + _waiting(seat) / max(1, most))
        ids = sorted(seat.worker.worker_id for seat in decode)
        turn = {worker_id: place for place, worker_id in enumerate(sorted(ids, key=lambda w: (w <= last, w)))}
        return least(decode, request, lambda seat: turn[seat.worker.worker_id])


def _waiting(seat: Seat) -> int:
    return seat.worker.waiting + seat.worker.credit - seat.credit


def _usage(seat: Seat) -> float:
    """Of the KV memory. The paper's score also counts the prefix that is there, which no view shows."""
    return seat.worker.kv_used_tokens / max(1, seat.worker.kv_total_tokens)


def _take_room(request: RequestView, source: Seat, room: dict[str, int]) -> bool:
    domain = source.worker.kv_domain
    if request.max_new_tokens == 1:
        return True
    if room.get(domain, 0) < request.isl_tokens:
        return False
    room[domain] -= request.isl_tokens
    return True


def _segments(request: RequestView, source: Seat, target: Seat) -> tuple[SegmentPlan, ...]:
    here = SegmentPlan(target.worker.worker_id)
    if source is target:
        return (here,)
    first = SegmentPlan(source.worker.worker_id, request.isl_tokens)
    return (first,) if request.max_new_tokens == 1 else (first, here)


ONE_AT_A_TIME = BudgetSpec(
    "dopd.policy.static_split:Batches", {"batch_tokens": 1, "prefill_tokens": LOCAL_TOKENS + 1}, prefills_only=True
)
"""A step takes one whole prompt and no second one; beside decodes as many tokens as a local prompt has at most."""

# --- sizing -----------------------------------------------------------------------------------------------------------


def planner(ground: Ground | None = None, interval_s: float = INTERVAL_S, idle_s: float = IDLE_S) -> Intervals:
    """The released planner."""
    return Intervals(partial(sizes, (ground or Ground()).profile, interval_s), interval_s, idle_s)


def sizes(profile: Profile, interval_s: float, forecast: ForecastView, cluster: ClusterView, slo: Slo) -> Sized:
    """Steps 2 to 6 of algorithms.md 1.7. The targets are not asked for: memory alone bounds a decode worker."""
    requests = forecast.requests_per_s * interval_s
    isl, osl = forecast.isl_tokens_mean, forecast.osl_tokens_mean
    context = live_context(isl, osl)
    most = concurrency(profile, context)
    correction = decode_correction(profile, cluster, context)
    prompt_s = prefill_s(profile, int(max(LEAST_PROFILED_TOKENS, min(isl, profile.max_model_len))))
    token_s = step_s(profile, 0, 0, most, most * context) * correction
    return Sized(
        prefill=max(1, ceil(most * prompt_s / (osl * token_s))),
        decode=max(1, ceil(requests / most)),
        inputs={
            "requests": requests, "isl_tokens": isl, "osl_tokens": osl, "concurrency": float(most),
            "prefill_s": prompt_s, "step_s": token_s, "decode_correction": correction,
        },
    )  # fmt: skip


def live_context(isl_tokens: float, osl_tokens: float) -> float:
    """Mean context of a decoding request in tokens (D8)."""
    return isl_tokens + osl_tokens / 2


def concurrency(profile: Profile, context_tokens: float) -> int:
    """Requests that one decode worker holds: by its blocks of KV (D9), and no more than its engine runs at once."""
    blocks = profile.kv_total_tokens // profile.block_tokens
    return max(1, min(blocks // ceil(context_tokens / profile.block_tokens), profile.max_running))


def decode_correction(profile: Profile, cluster: ClusterView, context_tokens: float) -> float:
    """Observed over predicted time of a decode step (k_d of algorithms.md 1.9, D20); 1 while nothing is observed.

    Concurrency is that of the decode workers as they say it, which Little's law stands for in the released code.
    """
    seen = [worker for worker in members(cluster, "decode") if worker.step_s > 0 and worker.decoding]
    if not seen:
        return 1.0
    present = sum(worker.decoding for worker in seen) / len(seen)
    observed_s = sum(worker.step_s for worker in seen) / len(seen)
    return observed_s / step_s(profile, 0, 0, present, present * context_tokens)


DOPD_PAPER = Policy(
    name="dopd-paper",
    scheduler=Remote,
    budget=ONE_AT_A_TIME,
    planner=planner,
    starts=starts,
    forecast_models=("arima",),
)
DOPD_COLDSTART = replace(DOPD_PAPER, name="dopd-coldstart", starts=partial(starts, cold=1))
"""The same, and a role change is a stop and a start, as in the released code."""
