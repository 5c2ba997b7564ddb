"""The first policy: prefill on the least loaded prefill worker, decode on the least loaded decode worker, FIFO.

Both are bound when both have credit, so that a slow decode side holds prefill back instead of filling the KV store.
"""

from collections.abc import Sequence
from dataclasses import replace

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


class SimpleScheduler:
    """First come, first served; stateless."""

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, Sequence[Dispatch], float | None]:
        dispatches: list[Dispatch] = []
        prefill = {w.worker_id: w for w in cluster.serving("prefill", "mixed")}
        decode = {w.worker_id: w for w in cluster.serving("decode", "mixed")}
        room = dict(cluster.kv_room_tokens)
        for request in sorted(queue, key=lambda r: -r.priority):
            target = _least_loaded(decode, request.avoid)
            source = target if request.kv_tokens else _least_loaded(prefill, request.avoid)
            if source is not None and request.max_new_tokens == 1:
                target = source  # the prefill's token is the only one
            if source is None or target is None:
                break  # nobody overtakes: a request that waits for credit is the next to get it
            same = source.worker_id == target.worker_id
            if not same and room.get(source.kv_domain, 0) < request.isl_tokens:
                break
            dispatches.append(_dispatch(request, source, target))
            room[source.kv_domain] = room.get(source.kv_domain, 0) - (0 if same else request.isl_tokens)
            for worker in {source.worker_id, target.worker_id}:
                _take(prefill, worker, request.isl_tokens)
                _take(decode, worker, request.isl_tokens)
        return None, dispatches, None


def _dispatch(request: RequestView, source: WorkerView, target: WorkerView) -> Dispatch:
    prefill = SegmentPlan(source.worker_id, request.isl_tokens)
    if request.max_new_tokens == 1 and not request.kv_tokens:
        segments: tuple[SegmentPlan, ...] = (prefill,)
    elif source.worker_id == target.worker_id:
        segments = (SegmentPlan(target.worker_id),)
    else:
        segments = (prefill, SegmentPlan(target.worker_id))
    return Dispatch((Placement(request.request_id, segments),))


def _least_loaded(workers: dict[str, WorkerView], avoid: frozenset[str]) -> WorkerView | None:
    able = [w for w in workers.values() if w.credit > 0 and w.worker_id not in avoid]
    able = able or [w for w in workers.values() if w.credit > 0]
    return min(able, key=lambda w: (w.queued_prefill_tokens, w.running + w.waiting, w.worker_id), default=None)


def _take(workers: dict[str, WorkerView], worker_id: str, tokens: int) -> None:
    worker = workers.get(worker_id)
    if worker is not None:
        workers[worker_id] = replace(
            worker,
            credit=worker.credit - 1,
            waiting=worker.waiting + 1,
            queued_prefill_tokens=worker.queued_prefill_tokens + (tokens if worker.role != "decode" else 0),
        )


class BesideDecodes:
    """Beside decodes a step takes at most `prefill_tokens` of prompts.

    A worker that has become a prefill worker by `overlap` still holds decodes. Each of their tokens waits for a step,
    and a step full of prompts takes up to a second on a large model: requests would die of that.
    """

    def __init__(self, prefill_tokens: float = 512) -> None:
        self._prefill_tokens = int(prefill_tokens)

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, StepLimit(step.decodes + self._prefill_tokens if step.decodes else None)


SIMPLE = Policy(
    name="simple",
    scheduler=SimpleScheduler,
    budget=BudgetSpec("dopd.policy.simple:BesideDecodes", prefills_only=True),
)
