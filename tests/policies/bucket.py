"""Shaped like BucketServe, for tests: adaptive length buckets, a batch of one bucket per idle prefill worker."""

from bisect import bisect_right
from collections.abc import Sequence

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import Dispatch, Placement, Policy, RequestView, SegmentPlan

Bounds = tuple[int, ...]
MEMORY_SHARE, SKEW = 0.9, 0.5


class Buckets:
    """The state holds the lower bounds of the buckets. A batch fills the memory left, and one step at most."""

    def __init__(self, step_tokens: float = 8192, crowd: float = 8, longest: float = 131_072) -> None:
        self._step_tokens, self._crowd, self._longest = int(step_tokens), int(crowd), int(longest)

    def initial(self) -> Bounds:
        return (0,)

    def step(
        self, state: Bounds, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[Bounds, list[Dispatch], None]:
        bounds = self._adjusted(state, [request.isl_tokens for request in queue])
        waiting = sorted(queue, key=lambda r: (r.arrived_s, r.request_id))
        credit = {worker.worker_id: worker.credit for worker in cluster.workers}
        room = dict(cluster.kv_room_tokens)
        dispatches: list[Dispatch] = []
        for request in [r for r in waiting if r.kv_tokens]:
            if place := _placement(request, None, cluster, credit):
                dispatches.append(Dispatch((place,)))
        waiting = [r for r in waiting if not r.kv_tokens]
        for worker in cluster.serving("prefill", "mixed"):
            if worker.running + worker.waiting == 0:
                batch = self._batch(bounds, waiting, worker, room.get(worker.kv_domain, 0))
                places = [place for r in batch if (place := _placement(r, worker, cluster, credit))]
                dispatches += [Dispatch(tuple(places), together=True)] if places else []
                room[worker.kv_domain] = room.get(worker.kv_domain, 0) - sum(r.isl_tokens for r in batch)
                placed = {place.request_id for place in places}
                waiting = [r for r in waiting if r.request_id not in placed]
        return bounds, dispatches, None

    def _adjusted(self, bounds: Bounds, lengths: Sequence[int]) -> Bounds:
        if len(lengths) < self._crowd:
            return (0,)
        new: list[int] = []
        for low, high in zip(bounds, (*bounds[1:], self._longest), strict=True):
            inside, middle = [n for n in lengths if low <= n < high], (low + high) // 2
            split = len(inside) > self._crowd and sum(n < middle for n in inside) > SKEW * len(inside)
            new += [low, middle] if split and middle > low else [low]
        return tuple(new)

    def _batch(
        self, bounds: Bounds, waiting: Sequence[RequestView], worker: WorkerView, room: int
    ) -> list[RequestView]:
        """From the bucket of the oldest request, oldest first, as many as memory and the KV store allow."""
        memory = min(int(MEMORY_SHARE * (worker.kv_total_tokens - worker.kv_used_tokens)), room)
        batch: list[RequestView] = []
        for request in waiting:
            same = bisect_right(bounds, request.isl_tokens) == bisect_right(bounds, waiting[0].isl_tokens)
            total = sum(r.isl_tokens for r in batch) + request.isl_tokens
            if same and total <= memory and (not batch or total <= self._step_tokens):
                batch.append(request)
        return batch


def _placement(
    request: RequestView, source: WorkerView | None, cluster: ClusterView, credit: dict[str, int]
) -> Placement | None:
    """From this prefill worker to the decode worker with the least to do, if both have credit."""
    if source and not credit[source.worker_id]:
        return None
    targets = [w for w in cluster.serving("decode", "mixed") if credit[w.worker_id]]
    load = {w.worker_id: w.running + w.waiting + w.credit - credit[w.worker_id] for w in targets}
    target = min(load, key=lambda name: (name in request.avoid, load[name], name), default=None)
    if target is None:
        return None
    first = (SegmentPlan(source.worker_id, request.isl_tokens),) if source and source.worker_id != target else ()
    for name in {target} | {plan.worker_id or "" for plan in first}:
        credit[name] -= 1
    return Placement(request.request_id, (*first, SegmentPlan(target)))


BUCKET = Policy("bucket", Buckets)
