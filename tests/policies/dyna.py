"""Shaped like DynaServe, for tests: workers without roles, a cut at any token, a token budget for every step."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from dopd.cluster import ClusterView, WorkerView
from dopd.perf.profile import named
from dopd.policy.base import BudgetSpec, Dispatch, Placement, Policy, RequestView, SegmentPlan, StepLimit, StepView

GPU = named("h200-llama-3.1-8b-fp8-tp1")
MARGIN, ROUNDS, EVEN = 20, 6, 0.05


class Splitter:
    """First come, first served; the cut evens out the two least loaded workers."""

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, list[Dispatch], None]:
        workers = {w.worker_id: w for w in cluster.serving("mixed")}
        room = dict(cluster.kv_room_tokens)
        dispatches: list[Dispatch] = []
        for request in queue:
            able = sorted((w for w in workers.values() if w.credit > 0), key=lambda w: (_backlog_s(w), w.worker_id))
            able = [w for w in able if w.worker_id not in request.avoid] or able
            if not able:
                break
            cut = _cut(request, *able[:2]) if len(able) > 1 and not request.kv_tokens else None
            if cut is not None and room.get(able[0].kv_domain, 0) < cut:
                break
            segments = [SegmentPlan(able[0].worker_id, cut)] + ([SegmentPlan(able[1].worker_id)] if cut else [])
            dispatches.append(Dispatch((Placement(request.request_id, tuple(segments)),)))
            room[able[0].kv_domain] = room.get(able[0].kv_domain, 0) - (cut or 0)
            for worker in able[: len(segments)]:
                more = worker.queued_prefill_tokens + request.isl_tokens // len(segments)
                workers[worker.worker_id] = replace(
                    worker, credit=worker.credit - 1, waiting=worker.waiting + 1, queued_prefill_tokens=more
                )
        return None, dispatches, None


def _backlog_s(worker: WorkerView) -> float:
    return worker.queued_prefill_tokens * GPU.prefill_token_s + (worker.running + worker.waiting) * 0.05


def _cut(request: RequestView, a: WorkerView, b: WorkerView) -> int | None:
    """The cut with the smallest imbalance; None: all of it on the first."""
    prompt, longest = request.isl_tokens, request.isl_tokens + min(request.max_new_tokens, request.osl_tokens + MARGIN)
    share, low, high = prompt / longest, 0.0, 1.0
    best = (2.0, prompt)
    for _ in range(ROUNDS):
        cut = max(1, round(share * longest))
        first_s = _backlog_s(a) + _span_s(0, cut, prompt)
        second_s = _backlog_s(b) + _span_s(cut, int(longest), prompt)
        best = min(best, (abs(first_s - second_s) / max(first_s, second_s), cut))
        if best[0] <= EVEN:
            break
        low, high = (low, share) if first_s > second_s else (share, high)
        share = (low + high) / 2
    return best[1] if best[1] < prompt + request.max_new_tokens else None


def _span_s(start: int, stop: int, prompt: int) -> float:
    prefill = max(0, min(stop, prompt) - start)
    return prefill * GPU.prefill_token_s + max(0, stop - max(start, prompt)) * GPU.decode_fixed_s


class LatencyBudget:
    """Decodes first, then as many prompt tokens as the step's time allows."""

    def __init__(self, step_s: float = 0.04) -> None:
        self._step_s = step_s

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        prefill = self.prefill_tokens(step.decodes, step.context_tokens, step.prefill_context_tokens)
        return None, StepLimit(max_tokens=step.decodes + prefill)

    def prefill_tokens(self, decodes: int, context: int, prefill_context: int) -> int:
        """The most with which the predicted step time holds; something, when nothing would run otherwise."""
        left_s = self._step_s - GPU.prefill_fixed_s - GPU.decode_request_s * decodes - GPU.decode_context_s * context
        slope = GPU.prefill_token_s + 2 * GPU.prefill_token2_s * prefill_context
        most = (sqrt(slope**2 + 4 * GPU.prefill_token2_s * max(0.0, left_s)) - slope) / (2 * GPU.prefill_token2_s)
        return int(most) if decodes else max(int(most), 64)


DYNA = Policy("dyna", Splitter, BudgetSpec("tests.policies.dyna:LatencyBudget"), first_roles="mixed")
