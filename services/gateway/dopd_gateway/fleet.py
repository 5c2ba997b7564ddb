"""The workers as one gateway knows them: states, leases, and what it has sent that no state shows yet. Pure.

Consumes `WorkerState`, `WorkReply` and own dispatches; produces `ClusterView` for the policy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from math import inf

import msgspec

from dopd.cluster import ClusterView, WorkerView
from dopd_proto.request import WorkReply
from dopd_proto.telemetry import Grant, WorkerState

LATE_S = 1.0
"""So long a state may be under way."""
_NO_GRANT = Grant(gateway_id="", gateway_incarnation="", received=0, limit=0)


@dataclass(slots=True)
class Known:
    """One worker. `sent` counts work ever placed on this incarnation, `open` that of which no fate is known yet.

    `open_prefill_tokens` are those of open work, `new_prefill_tokens` of accepted work that no state shows yet.
    `taken_s` is about when it last took some. `batches` is the number of its newest token batch that came, `due` how
    many its state before the last one counted. `grant` is what the state has for this gateway. `view` is what the
    policy sees, None when that has changed since.
    """

    state: WorkerState
    grant: Grant
    heard_s: float
    sent: int = 0
    open: int = 0
    batches: int = 0
    due: int = 0
    taken_s: float = -inf
    usable: bool = True
    open_prefill_tokens: int = 0
    new_prefill_tokens: int = 0
    view: WorkerView | None = None

    def serving(self) -> bool:
        return self.usable and self.state.phase == "serving"


class Fleet:
    """Folds what is heard of workers into views. `me` is the gateway's incarnation, which grants must name."""

    def __init__(self, gateway_id: str, incarnation: str) -> None:
        self._gateway_id, self._incarnation = gateway_id, incarnation
        self.workers: dict[str, Known] = {}
        self._in_order: list[Known] = []
        self._links: dict[tuple[str, str], float] | None = {}

    def heard(self, state: WorkerState, now_s: float) -> str | None:
        """Fold a state. The incarnation that it ends, if any: its work is lost."""
        known = self.workers.get(state.worker_id)
        if known is not None and state.sent_s < known.state.sent_s:
            return None  # overtaken by a newer one, or late words of an earlier life
        grant = self._grant(state)
        if known is None or known.state.incarnation != state.incarnation:
            self._in_order, self._links = [], None
            self.workers[state.worker_id] = Known(state, grant, now_s, sent=grant.received, batches=grant.batches)
            return known.state.incarnation if known else None
        if _way(state) != _way(known.state):
            self._links = None
        known.due, anew = known.grant.batches, grant.received < known.grant.received
        if grant.batches < known.due:
            known.batches = 0  # it had given us up, and counts anew
        known.state, known.grant, known.heard_s, known.usable, known.view = state, grant, now_s, True, None
        if known.sent - grant.received <= known.open:
            known.new_prefill_tokens = 0
        late = grant.received < known.sent and now_s - known.taken_s <= LATE_S
        if not known.open and (anew or not late):
            # Nothing under way: the worker's count is the truth, whatever was lost or came late before. A lower one
            # just after an acceptance is older than that: states and answers come on two ways.
            known.sent = grant.received
        return state.incarnation if state.phase == "failed" else None

    def refused(self, worker_id: str, reply: WorkReply | None) -> None:
        """A piece of work was not taken: believe the reply, or without one leave the worker alone until it speaks."""
        known = self.workers.get(worker_id)
        if known is None:
            return
        known.view = None
        if reply is not None and reply.reason == "wrong_role":
            known.state = msgspec.structs.replace(known.state, role=reply.role, epoch=reply.epoch)
        else:
            known.usable = False

    def lapsed(self, now_s: float) -> list[Known]:
        """Workers that have been silent for longer than their lease; they are forgotten."""
        gone = [known for known in self.workers.values() if now_s - known.heard_s > known.state.lease_s]
        for known in gone:
            del self.workers[known.state.worker_id]
            self._in_order, self._links = [], None
        return gone

    def knows(self, worker_id: str, incarnation: str) -> bool:
        """Whether this life of the worker has not ended yet, as far as we know."""
        known = self.workers.get(worker_id)
        return known is not None and known.state.incarnation == incarnation

    # --- token batches ------------------------------------------------------------------------------------------

    def batch_came(self, worker_id: str, incarnation: str, number: int) -> bool:
        """Count a batch; True when one before it is missing."""
        if not self.knows(worker_id, incarnation):
            return False
        known = self.workers[worker_id]
        hole = number > known.batches + 1
        known.batches = max(known.batches, number)
        return hole

    def batch_overdue(self, worker_id: str) -> bool:
        """Whether a batch is missing that the state before the last counted: tokens and states come on two ways."""
        known = self.workers.get(worker_id)
        if known is None or known.due <= known.batches:
            return False
        known.batches = known.due
        return True

    # --- own dispatches -----------------------------------------------------------------------------------------

    def placed(self, worker_id: str, prefill_tokens: int) -> None:
        """Work is on its way."""
        known = self.workers.get(worker_id)
        if known is not None:
            known.sent += 1
            known.open += 1
            known.open_prefill_tokens += prefill_tokens
            known.view = None

    def settled(self, worker_id: str, incarnation: str, prefill_tokens: int, received: bool) -> None:
        """The fate of such work is known: the worker has it, or never will."""
        known = self.workers.get(worker_id)
        if known is not None and known.state.incarnation == incarnation:
            known.open = max(0, known.open - 1)
            known.open_prefill_tokens = max(0, known.open_prefill_tokens - prefill_tokens)
            known.view = None
            if received:
                known.taken_s = known.heard_s
                known.new_prefill_tokens += prefill_tokens
            else:
                known.sent -= 1

    # --- views --------------------------------------------------------------------------------------------------

    def view(self, kv_room_tokens: Mapping[str, int], knobs: Mapping[str, float]) -> ClusterView:
        """The cluster for the policy."""
        if not self._in_order:
            self._in_order = [known for _, known in sorted(self.workers.items())]
        if self._links is None:
            self._links = links_of(known.state for known in self._in_order)
        workers = tuple([known.view or self._view(known) for known in self._in_order])
        return ClusterView(workers, kv_room_tokens, knobs, self._links)

    def _view(self, known: Known) -> WorkerView:
        state = known.state
        known.view = WorkerView(
            worker_id=state.worker_id,
            incarnation=state.incarnation,
            role=state.role,
            epoch=state.epoch,
            serving=known.serving(),
            credit=self.credit(known),
            running=state.running,
            waiting=state.waiting + max(0, known.sent - known.grant.received),
            decoding=state.decoding,
            queued_prefill_tokens=state.queued_prefill_tokens + known.open_prefill_tokens + known.new_prefill_tokens,
            context_tokens=state.context_tokens,
            kv_used_tokens=state.kv_used_tokens,
            kv_total_tokens=state.kv_total_tokens,
            kv_domain=state.kv_domain,
            drained=state.drained_at_s is not None,
        )
        return known.view

    def credit(self, known: Known) -> int:
        """Requests that this gateway may still send the worker."""
        return max(0, known.grant.limit - known.sent) if known.serving() else 0

    def _grant(self, state: WorkerState) -> Grant:
        for grant in state.grants:
            if grant.gateway_id == self._gateway_id and grant.gateway_incarnation == self._incarnation:
                return grant
        return _NO_GRANT

    def domain_of(self, worker_id: str) -> str:
        """The KV domain of a worker, "" for one that is not known."""
        known = self.workers.get(worker_id)
        return known.state.kv_domain if known else ""

    def store_tokens(self) -> dict[str, int]:
        """Size of the KV store of each domain, 0 where it is not known."""
        sizes: dict[str, int] = {}
        for known in self.workers.values():
            domain = known.state.kv_domain
            sizes[domain] = max(sizes.get(domain, 0), known.state.store_total_tokens)
        return sizes


def links_of(states: Iterable[WorkerState]) -> dict[tuple[str, str], float]:
    """Pairs of domains with a path between them, and its cost: seconds per token.

    Domains are linked when all their workers reach the same shared store; one that starts has not looked yet.
    """
    ways: dict[str, set[tuple[str, float]]] = {}
    for state in states:
        if state.phase != "starting":
            ways.setdefault(state.kv_domain, set()).add((state.kv_shared, state.kv_shared_token_s))
    links: dict[tuple[str, str], float] = {}
    for here, there in permutations(ways, 2):
        names = {name for name, _ in ways[here] | ways[there]}
        if len(names) == 1 and "" not in names:
            links[here, there] = max(cost_s for _, cost_s in ways[here] | ways[there])
    return links


def _way(state: WorkerState) -> tuple[str, str, float, bool]:
    """What of a state links depend on."""
    return state.kv_domain, state.kv_shared, state.kv_shared_token_s, state.phase == "starting"
