"""DistServe (arXiv 2401.09670): a static split by its own placement search, whole-prompt batches, KV that is pulled.

Consumes views; produces placements of the prefill alone, and once that is done of the decode (algorithms.md 5.3).
Prefill: to the shortest queue; each engine batches whole prompts first come first served up to `batch_tokens`, the
number that saturates the GPU; a longer one runs alone. Decode: to the least loaded worker that accepts, which one does
while what waits there is below 5 % of its KV memory and the prompt's KV has room. The search for the split and for
`batch_tokens` needs a profile and a load: `dopd_loadgen.compare.placement`.
"""

from collections.abc import Sequence

from dopd.cluster import ClusterView
from dopd.policy.base import BudgetSpec, Dispatch, Policy, RequestView, SegmentPlan, StepLimit, StepView
from dopd.policy.static_split import (
    BATCH_TOKENS,
    Seat,
    least,
    mean_context,
    placed,
    room_of,
    seats_of,
    take,
    whole_prompts,
)

WAITING_SHARE = 0.05


class Pull:
    """First come, first served in each phase; stateless."""

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, Sequence[Dispatch], float | None]:
        seats = seats_of(cluster)
        prefill = [seats[w.worker_id] for w in cluster.serving("prefill", "mixed")]
        decode = [seats[w.worker_id] for w in cluster.serving("decode", "mixed")]
        room, mean_tokens = room_of(queue, cluster), mean_context(cluster)
        dispatches: list[Dispatch] = []
        ordered = sorted(queue, key=lambda r: -r.priority)
        for request in (r for r in ordered if r.kv_tokens):
            target = least([seat for seat in decode if accepts(seat, request)], request, lambda seat: seat.load)
            if target is None:
                break
            dispatches.append(placed(request, SegmentPlan(target.worker.worker_id)))
            take(target, 0, request.isl_tokens, mean_tokens)
        for request in (r for r in ordered if not r.kv_tokens):
            source = least(prefill, request, lambda seat: seat.prefill_tokens)
            if source is None or not _fits(request, room, source):
                break
            segments = [SegmentPlan(source.worker.worker_id, request.isl_tokens)]
            if request.max_new_tokens > 1:
                segments.append(SegmentPlan(None))
                room[source.worker.kv_domain] -= request.isl_tokens
            dispatches.append(placed(request, *segments))
            take(source, request.uncached_tokens, 0, mean_tokens)
        return None, dispatches, None


def accepts(seat: Seat, request: RequestView) -> bool:
    """Whether a decode worker pulls this request now. An idle one does, however long the prompt."""
    worker = seat.worker
    came = worker.credit - seat.credit + worker.waiting
    idle = not (worker.running or came)
    waiting_tokens = came * request.isl_tokens
    free = worker.kv_total_tokens - worker.kv_used_tokens - waiting_tokens
    return idle or (waiting_tokens < WAITING_SHARE * worker.kv_total_tokens and request.isl_tokens <= free)


def _fits(request: RequestView, room: dict[str, int], source: Seat) -> bool:
    return request.max_new_tokens == 1 or room.get(source.worker.kv_domain, 0) >= request.isl_tokens


class WholePrompts:
    """A step takes whole prompts, up to `batch_tokens` in all, and the next batch waits until they are done."""

    def __init__(self, batch_tokens: float = BATCH_TOKENS) -> None:
        self._batch_tokens = int(batch_tokens)

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, whole_prompts(step, self._batch_tokens)


DISTSERVE = Policy(
    name="distserve",
    scheduler=Pull,
    budget=BudgetSpec("dopd.policy.distserve:WholePrompts", prefills_only=True),
)
