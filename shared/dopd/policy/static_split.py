"""A fixed split, `static-3p5d`: as good as a static ratio gets, so that what a moving one wins is the ratio's.

Consumes views; produces placements. Prompts go, first come first served and those that are too late in any case last,
to the prefill worker with the least tokens to compute; answers to the decode worker with the least load in requests and
context. When no decode worker has credit the prompt is computed all the same, within the KV budget, and its place to
decode is found later: a first token in time is worth more than one that waits for room to decode, since the time per
output token is a mean over the whole answer.
Engines compute whole prompts, no more at a time than saturate the GPU: more of them would all end later.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import (
    BudgetSpec,
    Dispatch,
    Placement,
    Policy,
    RequestView,
    SegmentPlan,
    StepLimit,
    StepView,
)

BATCH_TOKENS = 8192
MOST_PROMPTS = 128
"""In one batch of prompts."""
_NAME = re.compile(r"static-([1-9]\d*)p([1-9]\d*)d")


@dataclass(slots=True)
class Seat:
    """A worker within one round, with what the round has given it already. Tokens; `load` in requests."""

    worker: WorkerView
    credit: int
    prefill_tokens: int
    load: float


Load = Callable[[Seat], float]


class StaticSplit:
    """First come first served among those that can still meet their TTFT target, then the others; stateless.

    A prefill worker gets no more when `ahead_tokens` wait there: behind them the order could not be changed any more.
    `ahead_s` is about how long those take, so a request that has less time left is late. `late_last` 0: no such order.
    """

    def __init__(self, ahead_tokens: float = 2 * BATCH_TOKENS, ahead_s: float = 0.0, late_last: float = 1) -> None:
        self._ahead_tokens, self._ahead_s, self._late_last = ahead_tokens, ahead_s, bool(late_last)

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, Sequence[Dispatch], float | None]:
        seats = seats_of(cluster)
        prefill = [seats[w.worker_id] for w in cluster.serving("prefill", "mixed")]
        decode = [seats[w.worker_id] for w in cluster.serving("decode", "mixed")]
        room = room_of(queue, cluster)
        mean_tokens = mean_context(cluster)
        dispatches: list[Dispatch] = []
        for request in sorted(queue, key=lambda r: (-r.priority, self._late_last and late(r, now_s + self._ahead_s))):
            target = least(decode, request, lambda seat: seat.load)
            if request.kv_tokens:
                # Only decoding is left. It waits for that alone, so whoever needs a prefill may pass it.
                if target is not None:
                    dispatches.append(placed(request, SegmentPlan(target.worker.worker_id)))
                    take(target, 0, request.isl_tokens, mean_tokens)
                continue
            free = [seat for seat in prefill if seat.prefill_tokens < self._ahead_tokens]
            source = least(free, request, lambda seat: seat.prefill_tokens)
            if source is None:
                break  # nobody overtakes: a request that waits for a prefill is the next to get it
            plan = _slip(request, source, target, room)
            if plan is None:
                break
            dispatches.append(placed(request, *plan))
            take(source, request.uncached_tokens, 0, mean_tokens)
            if len(plan) == 2 and target is not None:
                take(target, 0, request.isl_tokens, mean_tokens)
        return None, dispatches, None


def _slip(
    request: RequestView, source: Seat, target: Seat | None, room: dict[str, int]
) -> tuple[SegmentPlan, ...] | None:
    """The segments; None when the KV store has no room for the prompt. Takes that room."""
    prefill = SegmentPlan(source.worker.worker_id, request.isl_tokens)
    if target is source:
        return (SegmentPlan(source.worker.worker_id),)
    if request.max_new_tokens == 1:
        return (prefill,)  # the prefill's token is the only one
    domain = source.worker.kv_domain
    if room.get(domain, 0) < request.isl_tokens:
        return None
    room[domain] -= request.isl_tokens
    return (prefill, SegmentPlan(None if target is None else target.worker.worker_id))


class Batches:
    """Whole prompts up to `batch_tokens` in a step; beside decodes `prefill_tokens` of them.

    There are none beside decodes unless a worker has changed its role and still has work of the old one.
    """

    def __init__(self, batch_tokens: float = BATCH_TOKENS, prefill_tokens: float = 512) -> None:
        self._batch_tokens, self._prefill_tokens = int(batch_tokens), int(prefill_tokens)

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        if step.decodes:
            return None, StepLimit(step.decodes + self._prefill_tokens)
        return None, whole_prompts(step, self._batch_tokens)


# --- parts that other policies use, too ---------------------------------------------------------------------------


def late(request: RequestView, first_s: float) -> bool:
    """Whether a first token at this time, the soonest there is, is too late."""
    return not request.kv_tokens and first_s - request.arrived_s > request.slo.ttft_s


def seats_of(cluster: ClusterView) -> dict[str, Seat]:
    """Every worker as it is before the round."""
    mean_tokens = mean_context(cluster)
    return {w.worker_id: Seat(w, w.credit, w.queued_prefill_tokens, _load(w, mean_tokens)) for w in cluster.workers}


def mean_context(cluster: ClusterView) -> float:
    """Tokens of context per request that decodes, over the cluster; 1 where nothing does."""
    decoding = sum(w.decoding for w in cluster.workers)
    return sum(w.context_tokens for w in cluster.workers) / decoding if decoding else 1.0


def _load(worker: WorkerView, mean_tokens: float) -> float:
    """A decode step costs by request and by context: both count alike, in units of a mean request."""
    on_their_way = worker.waiting  # no state shows their context yet
    return worker.running + worker.waiting + on_their_way + worker.context_tokens / mean_tokens


def room_of(queue: Sequence[RequestView], cluster: ClusterView) -> dict[str, int]:
    """Tokens that may still be prefilled, per KV domain. Prompts that wait for a place to decode are in a store."""
    stored = sum(request.kv_tokens for request in queue)
    return {domain: room - stored for domain, room in cluster.kv_room_tokens.items()}


def least(seats: Sequence[Seat], request: RequestView, load: Load) -> Seat | None:
    """The seat with credit and the least load, one that has not just failed this request where there is one."""
    able = [seat for seat in seats if seat.credit > 0]
    able = [seat for seat in able if seat.worker.worker_id not in request.avoid] or able
    return min(able, key=lambda seat: (load(seat), seat.load, seat.worker.worker_id), default=None)


def take(seat: Seat, prefill_tokens: int, context_tokens: int, mean_tokens: float) -> None:
    """Give it a request."""
    seat.credit -= 1
    seat.prefill_tokens += prefill_tokens
    seat.load += 1 + context_tokens / mean_tokens


def whole_prompts(step: StepView, batch_tokens: int) -> StepLimit:
    """Admits, once those before are done, prompts in their order up to so many tokens, the first however long."""
    if step.prefills:
        return StepLimit(gate="closed")
    count = tokens = 0
    for job in (job for job in step.waiting if job.ready):
        if count == MOST_PROMPTS or (count and tokens + job.tokens > batch_tokens):
            break
        count, tokens = count + 1, tokens + job.tokens
    return StepLimit(max_running=step.decodes + count) if count else StepLimit()


def placed(request: RequestView, *segments: SegmentPlan) -> Dispatch:
    """One request by itself."""
    return Dispatch((Placement(request.request_id, segments),))


def named_split(name: str) -> tuple[int, int] | None:
    """(prefill, decode) workers of `static-3p5d`; None for any other name."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def static_split(prefill: int, decode: int) -> Policy:
    """The split of so many workers. Its engines never mix phases, unless somebody changes roles by hand."""
    return Policy(
        name=f"static-{prefill}p{decode}d",
        scheduler=StaticSplit,
        budget=BudgetSpec("dopd.policy.static_split:Batches", prefills_only=True),
        split=(prefill, decode),
    )
