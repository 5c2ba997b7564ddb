"""DYN-LOAD: the planner of NVIDIA Dynamo that reacts to queues and memory, DOPD's weaker baseline.

Consumes views; produces the pools' needs, one worker more or less at a time (algorithms.md 1.13, 1.17). It forecasts
nothing. Requests are scheduled as with DYN-SLA.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dopd.cluster import ClusterView
from dopd.policy.base import ForecastView, Plan, Policy
from dopd.policy.dopd_paper import ONE_AT_A_TIME
from dopd.policy.dyn_sla import AlwaysRemote
from dopd.policy.pools import FIRST, NOTHING, Swaps, members, starts, swaps_to
from dopd.slo import Slo

PULL_S, INTERVAL_S = 10.0, 20.0
QUEUE_UP, QUEUE_DOWN = 5.0, 0.2
"""Requests that wait, per prefill worker."""
KV_UP, KV_DOWN, KV_WAITING = 0.9, 0.5, 0.02
"""Share of the KV memory in use; each request that waits counts as so much of it."""
GRACE_INTERVALS = TREND_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """Queue per prefill worker and memory in use per decode worker, at one time."""

    queue: float
    kv: float


@dataclass(frozen=True, slots=True)
class Load:
    """The state: what was seen in this interval, what each pool needs, intervals until decode may shrink, and what the
    last adjustment said."""

    swaps: Swaps = NOTHING
    seen: tuple[Seen, ...] = ()
    pull_s: float | None = None
    due_s: float = 0.0
    needs: tuple[int, int] | None = None
    grace: int = 0
    said: Plan = FIRST


class Thresholds:
    """Looks every `pull_s`, adjusts every `interval_s`, and does nothing while a change is under way.

    A pool may shrink to one worker; who is not needed any more works on until the other pool grows.
    """

    def __init__(self, pull_s: float = PULL_S, interval_s: float = INTERVAL_S) -> None:
        self._pull_s, self._interval_s = pull_s, interval_s

    def initial(self) -> Load:
        return Load()

    def plan(
        self, state: Load, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, now_s: float
    ) -> tuple[Load, Plan]:
        if state.pull_s is None:
            state = replace(state, pull_s=now_s + self._pull_s, due_s=now_s + self._interval_s)
        state = replace(state, swaps=state.swaps.left(cluster, now_s))
        if state.swaps.pending:
            # Afterwards it looks anew: the pools are others than those that were seen.
            anew = replace(state, seen=(), pull_s=now_s + self._pull_s, due_s=now_s + self._interval_s)
            return anew, replace(state.said, roles=state.swaps.next, reason="changing")
        pools = len(members(cluster, "prefill")), len(members(cluster, "decode"))
        if not all(pools):
            return state, Plan({}, reason="too_few_workers", needs="a worker of each role that serves")
        if now_s >= (state.pull_s or 0.0):
            isl_tokens = 0.0 if forecast is None else forecast.isl_tokens_mean
            state = replace(state, seen=(*state.seen, look(cluster, isl_tokens)), pull_s=now_s + self._pull_s)
        if now_s < state.due_s or not state.seen:
            return state, state.said
        return self._adjusted(state, cluster, pools, now_s)

    def _adjusted(self, state: Load, cluster: ClusterView, pools: tuple[int, int], now_s: float) -> tuple[Load, Plan]:
        needs, added = wanted(state.seen, pools, state.needs or pools, state.grace > 0)
        grace = GRACE_INTERVALS if added else max(0, state.grace - 1)
        swaps = swaps_to(cluster, *needs, now_s)
        queue, kv = _means(state.seen)
        inputs = {"queue": queue, "kv_usage": kv, "n_prefill": float(needs[0]), "n_decode": float(needs[1])}
        said = Plan({}, reason="thresholds", inputs=inputs)
        due_s = now_s + self._interval_s
        after = replace(state, swaps=swaps, seen=(), due_s=due_s, needs=needs, grace=grace, said=said)
        return after, replace(said, roles=swaps.next)


def look(cluster: ClusterView, isl_tokens: float = 0.0) -> Seen:
    """Queue and memory now.

    Requests in the gateways (their tokens over the mean length) wait for a decode worker, unless the prefill workers'
    queues are long: then they wait for those, whose queues tell enough.
    """
    prefill, decode = members(cluster, "prefill"), members(cluster, "decode")
    queue = sum(worker.waiting for worker in prefill) / len(prefill)
    in_gateways = cluster.waiting_prefill_tokens / isl_tokens if isl_tokens > 0 and queue <= QUEUE_UP else 0.0
    waiting = sum(worker.waiting for worker in decode) + cluster.waiting_decodes + in_gateways
    usage = sum(worker.kv_used_tokens / max(1, worker.kv_total_tokens) for worker in decode)
    return Seen(queue, (usage + KV_WAITING * waiting) / len(decode))


def _means(seen: Sequence[Seen]) -> tuple[float, float]:
    return sum(each.queue for each in seen) / len(seen), sum(each.kv for each in seen) / len(seen)


def wanted(
    seen: Sequence[Seen], pools: tuple[int, int], needs: tuple[int, int], graced: bool
) -> tuple[tuple[int, int], bool]:
    """What the pools of (prefill, decode) workers need after one round, and whether decode grows (algorithms.md 1.13).

    A pool grows by one beyond what it has, if the other one does not need that worker. With `graced` decode does not
    shrink.
    """
    queue, kv = _means(seen)
    need_prefill, need_decode = (min(need, pool) for need, pool in zip(needs, pools, strict=True))
    if queue < QUEUE_DOWN:
        need_prefill = max(1, need_prefill - 1)
    if kv < KV_DOWN and not graced:
        need_decode = max(1, need_decode - 1)
    budget, added = sum(pools), False
    if kv > KV_UP and need_prefill + pools[1] + 1 <= budget:
        need_decode, added = pools[1] + 1, True
    trend = seen[-1].queue - seen[0].queue
    grows = queue > QUEUE_UP and seen[-1].queue + TREND_INTERVALS * trend > QUEUE_UP
    if grows and pools[0] + 1 + need_decode <= budget:
        need_prefill = pools[0] + 1
    return (need_prefill, need_decode), added


DYN_LOAD = Policy(
    name="dyn-load",
    scheduler=AlwaysRemote,
    budget=ONE_AT_A_TIME,
    planner=Thresholds,
    starts=starts,
)
