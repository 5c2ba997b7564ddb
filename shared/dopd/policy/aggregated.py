"""Aggregated serving as vLLM does it: every worker does both phases, prompts in chunks beside the decodes.

Consumes views; produces placements of one segment each, and one token budget per step: decodes first, then chunks of
prompts in the order they came (algorithms.md 5.6). The budget is what is tuned: a small one keeps decode steps short,
a large one computes prompts with less fixed cost.
"""

from collections.abc import Sequence

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import BudgetSpec, Dispatch, Policy, RequestView, SegmentPlan, StepLimit, StepView
from dopd.policy.static_split import Seat, least, placed

BUDGETS_TOKENS = (256, 512, 1024, 2048, 4096, 8192)
"""What the budget is tuned over."""
_RUNNING_TOKENS, _CONTEXT_SHARE = 256.0, 0.25


class LeastWork:
    """To the worker with the least work, first come first served; stateless."""

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, Sequence[Dispatch], float | None]:
        seats = [Seat(w, w.credit, w.queued_prefill_tokens, work(w)) for w in cluster.serving("mixed")]
        dispatches: list[Dispatch] = []
        for request in sorted(queue, key=lambda r: -r.priority):
            seat = least(seats, request, lambda seat: seat.load)
            if seat is None:
                break
            dispatches.append(placed(request, SegmentPlan(seat.worker.worker_id)))
            seat.credit -= 1
            seat.load += request.uncached_tokens + _RUNNING_TOKENS
        return None, dispatches, None


def work(worker: WorkerView) -> float:
    """What is in hand, in tokens of prompt.

    A decode of some hundred tokens takes a GPU about as long as `_RUNNING_TOKENS` of prompt and a share of its context
    (H200, 8B: a prompt's token 14 us; a decoded one 37 us, and 30 ns per token of context).
    """
    in_hand = worker.running + worker.waiting
    return worker.queued_prefill_tokens + _RUNNING_TOKENS * in_hand + _CONTEXT_SHARE * worker.context_tokens


class TokenBudget:
    """At most `budget_tokens` in a step. Steps of decodes alone are never that large."""

    def __init__(self, budget_tokens: float = 2048) -> None:
        self._limit = StepLimit(int(budget_tokens))

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, self._limit


AGGREGATED = Policy(
    name="aggregated",
    scheduler=LeastWork,
    budget=BudgetSpec("dopd.policy.aggregated:TokenBudget", prefills_only=True),
    first_roles="mixed",
)
