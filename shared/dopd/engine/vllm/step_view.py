"""What vLLM's scheduler holds, in the words of our policies.

Consumes the running and waiting requests of a vLLM scheduler; produces the `StepView` that a `StepBudget` and the gate
read. Inside EngineCore's process.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dopd.policy.base import StepView, WaitingView

EXTRA_ARGS_KEY = "dopd"
MADE_KEY = "dopd_made"
FAR_KEY = "dopd_far"


@dataclass(frozen=True, slots=True)
class Tag:
    """The batch of a request as it came in `SamplingParams.extra_args`."""

    batch_id: str
    size: int
    exclusive: bool


def tag_of(request: Any) -> Tag | None:
    """The request's batch, if it has one."""
    extra = request.sampling_params.extra_args if request.sampling_params else None
    fields = (extra or {}).get(EXTRA_ARGS_KEY)
    return Tag(*fields) if fields else None


def job_of(request_id: str) -> str:
    """The job of an engine request: their ids differ by a suffix that makes each try unique."""
    return request_id.rpartition("#")[0] or request_id


def decoding(request: Any) -> bool:
    """Whether the input is computed, so that every further step makes a token."""
    return bool(request.num_computed_tokens >= request.num_prompt_tokens)


def waiting_view(request: Any, tag: Tag | None, waited_s: float, ready: bool) -> WaitingView:
    """One request that has not started."""
    return WaitingView(
        job_id=job_of(request.request_id),
        tokens=request.num_tokens - request.num_computed_tokens,
        waited_s=waited_s,
        ready=ready,
        batch_id=tag.batch_id if tag else "",
        batch_size=tag.size if tag else 1,
        exclusive=tag.exclusive if tag else False,
    )


def step_view(
    running: Sequence[Any],
    exclusive: Collection[str],
    waiting: Sequence[WaitingView],
    max_tokens: int,
    max_running: int,
) -> StepView:
    """The engine just before a step. `running` includes what was admitted and has not got its first tokens yet."""
    decodes = [request for request in running if decoding(request)]
    prefilling = [request for request in running if not decoding(request)]
    return StepView(
        decodes=len(decodes),
        context_tokens=sum(request.num_computed_tokens for request in decodes),
        prefills=len(prefilling),
        exclusive_running=any(request.request_id in exclusive for request in prefilling),
        waiting=waiting,
        max_tokens=max_tokens,
        max_running=max_running,
        prefill_context_tokens=sum(request.num_computed_tokens for request in prefilling),
    )
