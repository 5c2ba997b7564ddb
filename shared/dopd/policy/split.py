"""The two pools of a cluster, the splits that can be had of their workers, and who changes role for one. Pure.

Consumes the workers that serve; produces splits (prefill, decode) and new roles per worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dopd.cluster import WorkerView
from dopd.policy.base import Role


@dataclass(frozen=True, slots=True)
class Pools:
    """The workers that serve, by role. `mixed` ones count as decode workers: they take prompts as well."""

    prefill: tuple[WorkerView, ...]
    decode: tuple[WorkerView, ...]

    @classmethod
    def of(cls, workers: Sequence[WorkerView]) -> "Pools":
        """Of workers that serve."""
        return cls(tuple(w for w in workers if w.role == "prefill"), tuple(w for w in workers if w.role != "prefill"))

    @property
    def split(self) -> tuple[int, int]:
        return len(self.prefill), len(self.decode)

    def splits(self) -> list[tuple[int, int]]:
        """All that can be had, with a worker in each pool, leaving alone whom a person has pinned."""
        least, most = sum(w.pinned for w in self.prefill), sum(self.split) - sum(w.pinned for w in self.decode)
        return [(n, sum(self.split) - n) for n in range(max(1, least), min(sum(self.split) - 1, most) + 1)]


def flips(pools: Pools, more_prefill: int) -> dict[str, Role]:
    """New roles for the workers with the least work of their old one; those that still drain last."""
    if more_prefill > 0:
        return {w.worker_id: "prefill" for w in _idlest(pools.decode)[:more_prefill]}
    return {w.worker_id: "decode" for w in _idlest(pools.prefill)[:-more_prefill]}


def _idlest(workers: Sequence[WorkerView]) -> list[WorkerView]:
    free = [w for w in workers if not w.pinned]
    return sorted(
        free,
        key=lambda w: (not w.drained, w.queued_prefill_tokens, w.context_tokens, w.running + w.waiting, w.worker_id),
    )
