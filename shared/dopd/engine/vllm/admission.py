"""Which waiting requests of a vLLM scheduler may start in the next step.

Consumes the scheduler's queues, its connector's look-ups, and a `StepBudget`; produces the step's limits and the
requests that vLLM may see. Inside EngineCore's process.

The members of a batch arrive, are looked up in the store and fetch KV in different steps. So the gate takes a request
as ready when its look-up has an answer; what it admits together fetches first, and then starts in one step. Only what
the gate has admitted holds KV: if others did, they could keep the admitted from starting for ever.
"""

import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.request import RequestStatus

from dopd.engine.vllm.step_view import Tag, decoding, job_of, step_view, tag_of, waiting_view
from dopd.policy.base import StepBudget, StepLimit, StepView, WaitingView
from dopd.policy.gate import admissible

log = logging.getLogger(__name__)

# A look-up locks what it finds in the store, so only requests whose turn is near are looked up.
LOOK_AHEAD = 2
# Members of a batch whose fetch has not ended by then (their KV has no room beside the others') start later.
FETCH_WAIT_S = 1.0
_NEW = (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


@dataclass(slots=True)
class Group:
    """What was admitted together; from its launch on vLLM sees all of it."""

    admitted_s: float
    launched: bool = False


@dataclass(slots=True)
class Known:
    """What we remember of a request from its arrival to its end."""

    number: int
    arrived_s: float
    tag: Tag | None
    found: int | None = None
    group: Group | None = None


@dataclass(slots=True)
class Admission:
    """The gate before vLLM's own admission. `scheduler` is the `PolicyScheduler` that it serves."""

    scheduler: Any
    budget: StepBudget | None = None
    state: Any = None
    prefills_only: bool = False
    known: dict[str, Known] = field(default_factory=dict)
    tagged: int = 0
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def idle(self) -> bool:
        """Nothing to police: vLLM schedules as it likes."""
        return (self.budget is None or (self.prefills_only and self._only_decodes())) and not self.tagged

    def _only_decodes(self) -> bool:
        waiting = self.scheduler.waiting or self.scheduler.kv_holding_waiting
        return not waiting and all(decoding(request) for request in self.scheduler.running)

    def arrive(self, request: Any) -> None:
        tag = tag_of(request)
        self.tagged += tag is not None
        self.known[request.request_id] = Known(next(self.numbers), time.monotonic(), tag)

    def leave(self, request: Any) -> None:
        known = self.known.pop(request.request_id, None)
        self.tagged -= known is not None and known.tag is not None

    def order(self, request: Any) -> tuple[int, int]:
        """Lower priorities first, then arrival: vLLM's own order."""
        return request.priority, self.known[request.request_id].number

    def decide(self) -> tuple[StepLimit, set[str]]:
        """The limits of the next step, and the ids of waiting requests that vLLM may see in it."""
        queued = sorted([*self.scheduler.kv_holding_waiting, *self.scheduler.waiting], key=self.order)
        admitted = [request for request in queued if self._started(request)]
        others = [request for request in queued if not self._of(request).group]
        view = self._view([*self.scheduler.running, *admitted], self._looked_up(others))
        limit = self._ask(view)
        self._admit(others, admissible(view, limit))
        admitted += [request for request in others if self._of(request).group]
        return limit, self._shown(admitted)

    def _of(self, request: Any) -> Known:
        return self.known[request.request_id]

    def _started(self, request: Any) -> bool:
        known = self._of(request)
        if not known.group and (request.num_computed_tokens or request.status not in _NEW):
            # Preempted, or fetching since before there was anything to police.
            known.group = Group(time.monotonic(), launched=True)
        return known.group is not None

    def _looked_up(self, others: list[Any]) -> list[WaitingView]:
        """The requests that wait for the gate. Their look-ups go on meanwhile."""
        now_s = time.monotonic()
        views = []
        near = self._near(others)
        for request in others:
            known = self._of(request)
            if request.request_id in near or (known.tag and known.tag.batch_id in near):
                known.found = self.scheduler.look_up(request)
            views.append(waiting_view(request, known.tag, now_s - known.arrived_s, ready=known.found is not None))
        return views

    def _near(self, others: list[Any]) -> set[str]:
        """The first requests and their batches: a member far behind would hold its batch, and that all others."""
        first = others[: LOOK_AHEAD * self.scheduler.max_num_running_reqs]
        tags = [self._of(request).tag for request in first]
        return {request.request_id for request in first} | {tag.batch_id for tag in tags if tag}

    def _view(self, started: list[Any], waiting: list[WaitingView]) -> StepView:
        exclusive = {each for each, known in self.known.items() if known.tag and known.tag.exclusive}
        return step_view(started, exclusive, waiting, self.scheduler.ceiling, self.scheduler.max_num_running_reqs)

    def _ask(self, view: StepView) -> StepLimit:
        if self.budget is None:
            return StepLimit()
        try:
            self.state, limit = self.budget.limit(self.state, view)
            return limit
        except Exception:
            # The records will contradict the policy, and say so; requests in flight do not pay for it.
            log.exception("step_budget_failed: scheduling without it")
            self.budget = None
            return StepLimit()

    def _admit(self, others: list[Any], job_ids: list[str]) -> None:
        groups: dict[str, Group] = {}
        by_job = {job_of(request.request_id): self._of(request) for request in others}
        for known in (by_job[job_id] for job_id in job_ids):
            alone = known.tag is None or known.tag.size == 1
            fresh = Group(time.monotonic(), launched=alone)
            known.group = fresh if known.tag is None or alone else groups.setdefault(known.tag.batch_id, fresh)

    def _shown(self, admitted: list[Any]) -> set[str]:
        """Of the admitted: all of what has launched; before that only those whose KV vLLM has to fetch."""
        late = {id(self._of(request).group) for request in admitted if not self._fetched(request)}
        shown = set()
        for request in admitted:
            known = self._of(request)
            group = known.group
            if group and not group.launched:
                group.launched = id(group) not in late or time.monotonic() - group.admitted_s > FETCH_WAIT_S
            # vLLM gives a request with KV to fetch its blocks, and does not run it before the fetch has ended.
            if (group and group.launched) or (request.status == RequestStatus.WAITING and not self._fetched(request)):
                shown.add(request.request_id)
        return shown

    def _fetched(self, request: Any) -> bool:
        """Whether the request needs no more KV from the store."""
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            return request.request_id in self.scheduler.finished_recving_kv_req_ids
        return bool(request.num_computed_tokens) or not self._of(request).found
