"""Shaped like UELLM, for tests: aggregated workers, batches by SLO and predicted length, each run to completion."""

from collections.abc import Sequence

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import BudgetSpec, Dispatch, Placement, Policy, RequestView, SegmentPlan, StepLimit, StepView

MOST, SLO_WEIGHT, LENGTH_WEIGHT, SPREAD, OVERHEAD = 10, 1.0, 0.5, 15_000, 1.2


class Batcher:
    """One batch per idle worker, from the front of the sorted queue."""

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, list[Dispatch], None]:
        waiting = sorted(queue, key=lambda r: (SLO_WEIGHT * r.slo.ttft_s + LENGTH_WEIGHT * r.osl_tokens, r.request_id))
        dispatches: list[Dispatch] = []
        for worker in cluster.serving("mixed"):
            batch = _batch(waiting, worker) if worker.running + worker.waiting == 0 else []
            if batch:
                places = [Placement(r.request_id, (SegmentPlan(worker.worker_id),)) for r in batch]
                dispatches.append(Dispatch(tuple(places), together=True))
                waiting = waiting[len(batch) :]
        return None, dispatches, None


def _batch(waiting: Sequence[RequestView], worker: WorkerView) -> list[RequestView]:
    batch: list[RequestView] = []
    memory = worker.kv_total_tokens
    for request in waiting[: min(MOST, worker.credit)]:
        longest = max((r.osl_tokens for r in batch), default=request.osl_tokens)
        memory -= request.isl_tokens + request.max_new_tokens
        if batch and (memory < 0 or (request.osl_tokens - longest) * (len(batch) + 1) * OVERHEAD > SPREAD):
            break
        batch.append(request)
    return batch


class RunToCompletion:
    """Nothing starts while anything runs, then one batch."""

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, StepLimit(gate="closed" if step.decodes + step.prefills else "batch")


UELLM = Policy("uellm", Batcher, BudgetSpec("tests.policies.uellm:RunToCompletion"), first_roles="mixed")
