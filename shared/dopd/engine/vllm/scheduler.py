"""vLLM's scheduler under our policies: before every step the pure `StepBudget` and the gate say what it may do.

Consumes requests with a batch tag in their `extra_args`, and a budget by `dopd_set_budget`; produces vLLM's steps
within the limits, a `StepRecord` of each, and figures of the load in vLLM's statistics. Lives in EngineCore's process.
"""

import logging
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.engine.core import EngineCore
from vllm.v1.metrics.stats import KV_FETCH_COMPLETED_WAITING, KV_FETCH_IN_PROGRESS
from vllm.v1.request import RequestStatus

from dopd.engine.vllm.admission import Admission
from dopd.engine.vllm.connector import HEALTH
from dopd.engine.vllm.hiding import hidden
from dopd.engine.vllm.resume import Resumed
from dopd.engine.vllm.step_view import decoding, job_of
from dopd.policy import budget_from
from dopd.policy.base import BudgetSpec, StepLimit
from dopd.runtime.lifeline import die_with

log = logging.getLogger(__name__)

Record = tuple[int, dict[str, int], int]

RECORDS = 4096
# The engine spins at 1 kHz while nothing can run; the front hears of that at this interval.
IDLE_STATS_S = 0.02


class PolicyScheduler(AsyncScheduler):
    """A subclass of the *async* scheduler: with one of the plain scheduler vLLM turns async scheduling off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _become_a_child()
        # Limits go below this, never above: buffers were made for it.
        self.ceiling: int = self.max_num_scheduled_tokens
        self._admission = Admission(self)
        self._resumed = Resumed()
        self._records: deque[Record] = deque(maxlen=RECORDS)
        self._steps = 0
        self._empty = False
        self._stats_s = 0.0

    # --- what the front calls ---------------------------------------------------------------------------------------

    def set_budget(self, target: str | None, params: Mapping[str, float], prefills_only: bool) -> None:
        """Another budget from the next step on."""
        budget = budget_from(BudgetSpec(target, params)) if target else None
        self._admission.state = budget.initial() if budget else None
        self._admission.budget, self._admission.prefills_only = budget, prefills_only

    def take_records(self) -> list[Record]:
        """The steps since the last call: number, tokens per job, decodes."""
        taken = list(self._records)
        self._records.clear()
        return taken

    def load(self) -> dict[str, float]:
        """What only this process knows: input computed so far of jobs without a token, and how the store does."""
        prefilling = [*self.kv_holding_waiting, *(each for each in self.running if not decoding(each))]
        return {
            "computed_tokens": sum(request.num_computed_tokens for request in prefilling),
            "store_ok": HEALTH.ok,
            "losses": HEALTH.losses,
        }

    def look_up(self, request: Any) -> int | None:
        """Tokens that the store has beyond our own cache; None while it looks. It is remembered: vLLM asks again."""
        if self.connector is None:
            return 0
        _, local_tokens, *_ = self._get_local_prefix_cache_hit(request)
        aligned = local_tokens - local_tokens % self.block_size
        found: int | None = self.connector.get_num_new_matched_tokens(request, aligned)[0]
        return found

    # --- vLLM's own interface ---------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        self._admission.arrive(request)
        self._resumed.arrive(request)
        super().add_request(request)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._admission.leave(request)
        self._resumed.leave(request)
        return super()._free_request(request, *args, **kwargs)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        decodes = {request.request_id for request in self.running if decoding(request)}
        if self._admission.idle:
            output = super().schedule(*args, **kwargs)
        else:
            limit, shown = self._admission.decide()
            with self._limited(limit), hidden((self.waiting, self.kv_holding_waiting), shown, self._admission.order):
                output = super().schedule(*args, **kwargs)
        self._record(output.num_scheduled_tokens, decodes)
        self._resumed.tell_runner(output)
        return output

    def _update_from_kv_xfer_finished(self, kv_connector_output: Any) -> None:
        # vLLM takes a second report, or a late one of a request that has gone, for a fatal error.
        for reported in (kv_connector_output.finished_recving, kv_connector_output.finished_sending):
            for request_id in [each for each in reported or () if not self._awaits_kv(each)]:
                log.warning("kv_report_dropped: %s", request_id)
                reported.discard(request_id)
        super()._update_from_kv_xfer_finished(kv_connector_output)

    def _awaits_kv(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        if request is None:
            return False
        waits: bool = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        return waits or bool(RequestStatus.is_finished(request.status))

    def _set_kv_fetch_stage(self, request: Any, stage: str | None) -> None:
        super()._set_kv_fetch_stage(request, stage)
        # A request's events go to the front with its first output. There is none for a fetch: it is queued once more
        # when it waits for its KV, and again when the KV is here (`jobs.py` reads it so).
        if stage in (KV_FETCH_IN_PROGRESS, KV_FETCH_COMPLETED_WAITING):
            request.record_event(EngineCoreEventType.QUEUED)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        now_s = time.monotonic()
        spinning = self._empty and self.get_request_counts()[1]
        if spinning and now_s - self._stats_s < IDLE_STATS_S:
            return None
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            self._stats_s = now_s
            # Counts empty steps, too: an engine whose requests wait is alive.
            stats.step_counter = self.current_step
            stats.kv_connector_stats = (stats.kv_connector_stats or {}) | {"dopd": self.load()}
        return stats

    @contextmanager
    def _limited(self, limit: StepLimit) -> Iterator[None]:
        if limit.max_tokens is not None:
            self.max_num_scheduled_tokens = max(0, min(limit.max_tokens, self.ceiling))
        try:
            yield
        finally:
            self.max_num_scheduled_tokens = self.ceiling

    def _record(self, scheduled: Mapping[str, int], decodes: set[str]) -> None:
        self._empty = not scheduled
        if scheduled:
            self._steps += 1
            tokens = {job_of(request_id): count for request_id, count in scheduled.items()}
            self._records.append((self._steps, tokens, sum(request_id in decodes for request_id in scheduled)))


def _become_a_child() -> None:
    """Die with the front, and not before it: Ctrl-C on a terminal goes to both, and the front ends its jobs first."""
    if parent := multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with(parent.pid or 0)


# Calls from the front are looked up by name on EngineCore.
# vLLM counts their parameters, so they are written out.
EngineCore.dopd_set_budget = lambda core, target, params, only: core.scheduler.set_budget(target, params, only)
EngineCore.dopd_take_records = lambda core: core.scheduler.take_records()
EngineCore.dopd_load = lambda core: core.scheduler.load()
