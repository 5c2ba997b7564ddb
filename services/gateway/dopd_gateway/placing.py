"""From a policy's dispatch to slips: which incarnation, epoch and role each segment is bound to. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence

from dopd.cluster import ClusterView
from dopd.policy.base import Dispatch, Placement, RequestView
from dopd_proto.base import Role
from dopd_proto.request import BatchTag, Segment

UNBOUNDED = 1 << 60


def queue_of(
    island: ClusterView, islands: Sequence[ClusterView], queue: Sequence[RequestView]
) -> Sequence[RequestView]:
    """What may go to this island: KV that is computed stays where it is, unless nobody serves there any more."""
    if len(islands) == 1:
        return queue
    homes = frozenset().union(*(each.domains for each in islands if any(w.serving for w in each.workers)))
    return [r for r in queue if not r.kv_tokens or r.kv_domain in island.domains or r.kv_domain not in homes]


def slip_of(placement: Placement, cluster: ClusterView) -> tuple[Segment, ...] | None:
    """The bound segments. None when a worker is not known.

    A second one that the policy left open is left out; two on one worker are one.
    """
    by_id = {worker.worker_id: worker for worker in cluster.workers}
    slip: list[Segment] = []
    for plan in placement.segments:
        if plan.worker_id is None:
            break
        worker = by_id.get(plan.worker_id)
        if worker is None:
            return None
        if slip and slip[-1].worker_id == plan.worker_id:
            slip.pop()
        kind: Role = "prefill" if plan.stop is not None else "decode"
        slip.append(Segment(
            worker_id=worker.worker_id, incarnation=worker.incarnation, epoch=worker.epoch, role=kind, stop=plan.stop,
        ))  # fmt: skip
    return tuple(slip) or None


def out_of_role(slip: Iterable[Segment], cluster: ClusterView) -> bool:
    """Whether a segment goes to a worker of another role because none of the right one serves."""
    return any(
        not any(worker.serving and worker.role in (segment.role, "mixed") for worker in cluster.workers)
        for segment in slip
    )


def batch_tags(dispatch: Dispatch, batch_id: str) -> dict[str, BatchTag]:
    """A tag per request id: those that start on the same worker wait for each other there."""
    if not (dispatch.together or dispatch.exclusive):
        return {}
    sizes = Counter(placement.segments[0].worker_id for placement in dispatch.placements)
    return {
        placement.request_id: BatchTag(
            batch_id=f"{batch_id}.{placement.segments[0].worker_id}",
            size=sizes[placement.segments[0].worker_id],
            exclusive=dispatch.exclusive,
        )
        for placement in dispatch.placements
    }


def kv_room(
    store_tokens: dict[str, int], share: float, unfetched: dict[str, int], gateways: int, longest_tokens: int = 0
) -> dict[str, int]:
    """Prompt tokens that may still be prefilled per KV domain before decode workers have fetched what is there.

    Without a known store size there is no bound. Each gateway has an equal part of the budget. While nothing is in
    flight there is room for the longest waiting prompt (`longest_tokens`), or one above the budget would wait for ever.
    """
    return {
        domain: _room(int(size * share) // max(1, gateways), unfetched.get(domain, 0), longest_tokens)
        if size
        else UNBOUNDED
        for domain, size in store_tokens.items()
    }


def _room(budget: int, in_flight: int, longest: int) -> int:
    return budget - in_flight if in_flight else max(budget, longest)
