"""The cluster as one gateway or planner sees it, folded from `WorkerState` messages. Pure.

Consumes states, dispatches and times; produces `ClusterView` for policies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

Role = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker. `credit` is how many more requests this gateway may send it now.

    Loads include this gateway's dispatches that no state shows yet. A planner sees the role that was last commanded,
    and whether a person has `pinned` it; `step_s` is the time of a decode step there of late, 0 while unknown.
    """

    worker_id: str
    incarnation: str
    role: Role
    epoch: int
    serving: bool
    credit: int = 0
    running: int = 0
    waiting: int = 0
    decoding: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    kv_domain: str = ""
    drained: bool = True
    pinned: bool = False
    step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All known workers in the order of their ids, and what the plan and the KV budget allow.

    `kv_room_tokens` per KV domain: how many more prompt tokens may be prefilled before a decode worker has fetched
    what is already there. `links` are pairs of different domains with a path between them, and what it costs: seconds
    per token of KV that moves, beyond what it takes inside a domain. What waits in all gateways is shown to planners
    alone: prompt tokens to compute, those of them whose TTFT target is over, and requests that only need a place to
    decode.
    """

    workers: tuple[WorkerView, ...]
    kv_room_tokens: Mapping[str, int] = field(default_factory=dict)
    knobs: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[tuple[str, str], float] = field(default_factory=dict)
    waiting_prefill_tokens: int = 0
    waiting_decodes: int = 0
    late_prefill_tokens: int = 0

    def serving(self, *roles: Role) -> list[WorkerView]:
        """Serving workers of these roles; when there is none, every serving worker: availability first."""
        alive = [w for w in self.workers if w.serving]
        return [w for w in alive if w.role in roles] or alive

    @property
    def domains(self) -> frozenset[str]:
        """The KV domains of its workers."""
        return frozenset(w.kv_domain for w in self.workers)

    def islands(self) -> "list[ClusterView]":
        """The cluster in parts between which no KV can move, the least loaded first; each is a cluster of its own."""
        groups = _connected(self.domains, self.links)
        if len(groups) < 2:
            return [self]
        parts = [replace(self, workers=tuple(w for w in self.workers if w.kv_domain in group)) for group in groups]
        return sorted(parts, key=_load)


def _connected(domains: Iterable[str], links: Iterable[tuple[str, str]]) -> list[frozenset[str]]:
    """Domains that have a path between them, in groups."""
    groups = [frozenset({domain}) for domain in sorted(domains)]
    for pair in links:
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in joined] + [frozenset().union(*joined)]
    return groups


def _load(cluster: ClusterView) -> float:
    """Requests per serving worker, those without any last."""
    serving = [w for w in cluster.workers if w.serving]
    return sum(w.running + w.waiting for w in serving) / len(serving) if serving else inf
