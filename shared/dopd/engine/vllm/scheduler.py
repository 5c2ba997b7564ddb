"""vLLM's scheduler under our policies: before every step the pure `StepBudget` and the gate say what it may do.

Consumes requests with a batch tag in their `extra_args`, and a budget by `dopd_set_budget`; produces vLLM's steps
within the limits, a `StepRecord` of each, and figures of the load in vLLM's statistics. Lives in EngineCore's process.

A request that may not start is taken out of vLLM's queues for the duration of `schedule()`. Its KV is looked up and
fetched meanwhile, so that the members of a batch, whose look-ups end in different steps, start in the same one.
"""

import itertools
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import RequestStatus

from dopd.engine.vllm.connector import HEALTH
from dopd.engine.vllm.step_view import Tag, decoding, job_of, step_view, tag_of, waiting_view
from dopd.policy import budget_from
from dopd.policy.base import BudgetSpec, StepBudget, StepLimit, StepView, WaitingView
from dopd.policy.gate import admissible
from dopd.runtime.lifeline import die_with

log = logging.getLogger(__name__)

RECORDS = 4096
# Found KV that gets no blocks for so long is not waited for: its holder could be the one that waits for it.
FETCH_WAIT_S = 1.0
# A look-up locks what it finds in the store, so only requests whose turn is near are looked up.
LOOK_AHEAD = 2
# The engine spins at 1 kHz while nothing can run; the front hears of that at this interval.
IDLE_STATS_S = 0.02


class PolicyScheduler(AsyncScheduler):
    """A subclass of the *async* scheduler: with one of the plain scheduler vLLM turns async scheduling off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if parent := multiprocessing.parent_process():
            # In the kernel's eyes the parent is the thread that started this process: `core.py` keeps it alive.
            die_with(parent.pid or 0)
        self._budget: StepBudget | None = None
        self._budget_state: Any = None
        self._ceiling: int = self.max_num_scheduled_tokens
        self._numbers = itertools.count()
        self._arrivals: dict[str, tuple[int, float]] = {}
        self._tags: dict[str, Tag] = {}
        self._admitted: set[str] = set()
        self._found_s: dict[str, float] = {}
        self._records: deque[tuple[int, dict[str, int], int]] = deque(maxlen=RECORDS)
        self._steps = 0
        self._empty = False
        self._stats_s = 0.0

    # --- what the front calls ---------------------------------------------------------------------------------------

    def set_budget(self, target: str | None, params: Mapping[str, float]) -> None:
        """Another budget from the next step on."""
        self._budget = budget_from(BudgetSpec(target, params)) if target else None
        self._budget_state = self._budget.initial() if self._budget else None

    def take_records(self) -> list[tuple[int, dict[str, int], int]]:
        """The steps since the last call: number, tokens per job, decodes."""
        taken = list(self._records)
        self._records.clear()
        return taken

    def load(self) -> dict[str, float]:
        """What only this process knows: input computed so far of jobs without a token, and how the store does."""
        prefilling = [*self.kv_holding_waiting, *(r for r in self.running if not decoding(r))]
        return {
            "computed_tokens": sum(request.num_computed_tokens for request in prefilling),
            "store_ok": HEALTH.ok,
            "losses": HEALTH.losses,
        }

    # --- vLLM's own interface ---------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        self._arrivals[request.request_id] = (next(self._numbers), time.monotonic())
        if tag := tag_of(request):
            self._tags[request.request_id] = tag
        super().add_request(request)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        freed = super()._free_request(request, *args, **kwargs)
        for known in (self._arrivals, self._tags, self._found_s):
            known.pop(request.request_id, None)
        self._admitted.discard(request.request_id)
        return freed

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        decodes = {request.request_id for request in self.running if decoding(request)}
        if self._budget is None and not self._tags:
            output = super().schedule(*args, **kwargs)
        else:
            limit, shown = self._decide()
            with self._limited(limit), self._hidden(shown):
                output = super().schedule(*args, **kwargs)
        self._record(output.num_scheduled_tokens, decodes)
        return output

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        now_s = time.monotonic()
        spinning = self._empty and self.get_request_counts()[1]
        if spinning and now_s - self._stats_s < IDLE_STATS_S:
            return None
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            self._stats_s = now_s
            stats.step_counter = self.current_step
            stats.kv_connector_stats = (stats.kv_connector_stats or {}) | {"dopd": self.load()}
        return stats

    # --- the decision -----------------------------------------------------------------------------------------------

    def _decide(self) -> tuple[StepLimit, set[str]]:
        """The limits of the next step, and the waiting requests that vLLM may see in it."""
        started: list[Any] = list(self.running)
        waiting: list[WaitingView] = []
        shown: set[str] = set()
        ids: dict[str, str] = {}
        for request in self._in_order():
            if request.request_id in self._admitted or request.status == RequestStatus.PREEMPTED:
                started.append(request)
                shown.add(request.request_id)
                continue
            near = len(waiting) < LOOK_AHEAD * self.max_num_running_reqs
            ready, fetch = self._ready(request) if near else (False, False)
            waiting.append(self._view(request, ready))
            ids[waiting[-1].job_id] = request.request_id
            if fetch:
                shown.add(request.request_id)
        exclusive = [request_id for request_id, tag in self._tags.items() if tag.exclusive]
        view = step_view(started, exclusive, waiting, self._ceiling, self.max_num_running_reqs)
        limit = self._ask(view)
        admitted = [ids[job_id] for job_id in admissible(view, limit)]
        self._admitted.update(admitted)
        return limit, shown.union(admitted)

    def _ask(self, view: StepView) -> StepLimit:
        if self._budget is None:
            return StepLimit()
        try:
            self._budget_state, limit = self._budget.limit(self._budget_state, view)
            return limit
        except Exception:
            # The records will contradict the policy, and say so; requests in flight do not pay for it.
            log.exception("step_budget_failed: scheduling without it")
            self._budget = None
            return StepLimit()

    def _in_order(self) -> list[Any]:
        waiting = [*self.kv_holding_waiting, *self.waiting]
        return sorted(waiting, key=lambda r: (r.priority, self._arrivals[r.request_id]))

    def _view(self, request: Any, ready: bool) -> WaitingView:
        waited_s = time.monotonic() - self._arrivals[request.request_id][1]
        return waiting_view(request, self._tags.get(request.request_id), waited_s, ready)

    def _ready(self, request: Any) -> tuple[bool, bool]:
        """Whether the request could run now, and whether vLLM should see it only to fetch its KV."""
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            return request.request_id in self.finished_recving_kv_req_ids, False
        if self.connector is None or request.num_computed_tokens:
            return True, False
        found = self._look_up(request)
        if not found:
            return found == 0, False
        # vLLM gives a request with KV to fetch its blocks, and does not run it before the fetch has ended.
        since_s = self._found_s.setdefault(request.request_id, time.monotonic())
        return time.monotonic() - since_s > FETCH_WAIT_S, True

    def _look_up(self, request: Any) -> int | None:
        """Tokens that the store has beyond our own cache; None while it looks. vLLM itself asks again, too."""
        _, local_tokens, *_ = self._get_local_prefix_cache_hit(request)
        aligned = local_tokens - local_tokens % self.block_size
        found: int | None = self.connector.get_num_new_matched_tokens(request, aligned)[0]
        return found

    # --- the enforcement --------------------------------------------------------------------------------------------

    @contextmanager
    def _limited(self, limit: StepLimit) -> Iterator[None]:
        if limit.max_tokens is not None:
            # Never above the start value: buffers were made for that.
            self.max_num_scheduled_tokens = max(0, min(limit.max_tokens, self._ceiling))
        try:
            yield
        finally:
            self.max_num_scheduled_tokens = self._ceiling

    @contextmanager
    def _hidden(self, shown: set[str]) -> Iterator[None]:
        queues = (self.waiting, self.kv_holding_waiting)
        hidden = [[request for request in queue if request.request_id not in shown] for queue in queues]
        for queue, requests in zip(queues, hidden, strict=True):
            queue.remove_requests(requests)
        try:
            yield
        finally:
            for queue, requests in zip(queues, hidden, strict=True):
                self._put_back(queue, requests)

    def _put_back(self, queue: Any, requests: list[Any]) -> None:
        if not requests:
            return
        if not isinstance(queue, deque):
            for request in requests:
                queue.add_request(request)
            return
        everything = sorted([*queue, *requests], key=lambda r: self._arrivals[r.request_id])
        queue.clear()
        queue.extend(everything)

    def _record(self, scheduled: Mapping[str, int], decodes: set[str]) -> None:
        self._empty = not scheduled
        if scheduled:
            self._steps += 1
            tokens = {job_of(request_id): count for request_id, count in scheduled.items()}
            self._records.append((self._steps, tokens, sum(request_id in decodes for request_id in scheduled)))


def _set_budget(core: Any, target: str | None, params: dict[str, float]) -> None:
    core.scheduler.set_budget(target, params)


def _take_records(core: Any) -> list[tuple[int, dict[str, int], int]]:
    records: list[tuple[int, dict[str, int], int]] = core.scheduler.take_records()
    return records


def _load(core: Any) -> dict[str, float]:
    load: dict[str, float] = core.scheduler.load()
    return load


# Utility calls are looked up by name on EngineCore.
EngineCore.dopd_set_budget = _set_budget
EngineCore.dopd_take_records = _take_records
EngineCore.dopd_load = _load
