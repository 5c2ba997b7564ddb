"""The cluster as one gateway or planner sees it, folded from `WorkerState` messages. Pure.

Consumes states, dispatches and times; produces `ClusterView` for policies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    what is already there. `links` holds pairs of different domains with a path between them. What waits in all
    gateways is shown to planners alone: prompt tokens to compute, those of them whose TTFT target is over, and requests
    that only need a place to decode.
    """

    workers: tuple[WorkerView, ...]
    kv_room_tokens: Mapping[str, int] = field(default_factory=dict)
    knobs: Mapping[str, float] = field(default_factory=dict)
    links: frozenset[tuple[str, str]] = frozenset()
    waiting_prefill_tokens: int = 0
    waiting_decodes: int = 0
    late_prefill_tokens: int = 0

    def serving(self, *roles: Role) -> list[WorkerView]:
        """Serving workers of these roles; when there is none, every serving worker: availability first."""
        alive = [w for w in self.workers if w.serving]
        return [w for w in alive if w.role in roles] or alive

    def reachable(self, source: WorkerView, target: WorkerView) -> bool:
        """Whether KV can move from one worker to the other."""
        pair = (source.kv_domain, target.kv_domain)
        return pair[0] == pair[1] or pair in self.links
