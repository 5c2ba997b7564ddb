"""A request on its way: what a gateway places on workers, and the tokens that come back.

`Generate` or `Chat` → `PrefillWork` → `DecodeWork` → `TokenBatch` → `Chunk`/`Completion`, or a `Failure` at any point.
What clients ask and get is in `asked.py`, and can be had from here, too.
"""

from typing import Literal

from dopd_proto.asked import (
    Chat,
    Choice,
    Chunk,
    Completion,
    Failure,
    FinishReason,
    Generate,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from dopd_proto.base import Message, Role

__all__ = [
    "Abort", "BatchTag", "Chat", "Choice", "Chunk", "Completion", "DecodeWork", "Failure", "FinishReason", "Generate",
    "PrefillWork", "Resend", "ResendReply", "Run", "RunEnd", "Sampling", "Segment", "Timing", "TokenBatch",
    "TokenLogprob", "TopLogprob", "Usage", "Work", "WorkReply",
]  # fmt: skip

RunEnd = Literal["stop", "length", "handed_over", "open", "migrated", "aborted", "failed"]
"""How a run of tokens ended on its worker.

`handed_over`: the next segment was accepted by the worker that the slip names. `open`: the segment is done and the
gateway places the next one. `migrated`: the worker gave the request back at a token boundary (role change).
"""


class Sampling(Message):
    """How tokens are drawn. Lengths count output tokens over the whole request, not one segment; so do penalties.

    `logprobs`: so many of the likeliest tokens beside the one drawn, None for no log-probabilities at all.
    `json_schema`: the answer must be JSON of this schema, "" for any text.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    ignore_eos: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}  # noqa: RUF012 - msgspec gives each message a dict of its own
    logprobs: int | None = None
    json_schema: str = ""


class BatchTag(Message):
    """Membership in a batch that starts in one engine step.

    `size` members wait for each other. `exclusive`: no other prefill runs beside the batch.
    """

    batch_id: str
    size: int = 1
    exclusive: bool = False


class Segment(Message):
    """A stretch of one request on one worker, as the gateway bound it.

    The worker computes KV for the first `stop` tokens of prompt + output (None: to the end). `epoch` and
    `incarnation` are the worker's as the gateway saw them; a mismatch is refused.
    """

    worker_id: str
    incarnation: str
    epoch: int
    role: Role
    stop: int | None = None


class Work(Message):
    """What a worker needs to run one segment.

    `tokens` (packed) is the prompt and the output so far, `prompt_tokens` of them the prompt. `any_role` lets a
    worker of another role take it, when no worker of the right role serves. `kv_tokens`: so many of the tokens have
    had their KV computed and stored by an earlier segment, in `kv_domain`; what is missing of it here is a miss.
    """

    request_id: str
    attempt: int
    gateway_id: str
    gateway_incarnation: str
    tokens: bytes
    prompt_tokens: int
    sampling: Sampling
    segment: Segment
    deadline_s: float
    batch: BatchTag | None = None
    priority: int = 0
    any_role: bool = False
    kv_tokens: int = 0
    kv_domain: str = ""


class PrefillWork(Work):
    """Compute up to `segment.stop`, then hand over to `then` (None: the gateway picks when the time comes)."""

    then: Segment | None = None


class DecodeWork(Work):
    """Continue from `tokens` to the end. With the bare prompt as tokens it is a whole request on one worker."""


class WorkReply(Message):
    """The worker's immediate answer to a piece of work. `reason` is a code when it was not accepted."""

    accepted: bool
    role: Role
    epoch: int
    reason: Literal["", "wrong_role", "incarnation", "draining", "full", "deadline", "stale", "invalid"] = ""
    message: str = ""


class Timing(Message):
    """When a segment went through its worker, on the worker's clock; None: not known, or it did not happen.

    `received_s` the work was accepted, `fetch_s` and `fetched_s` begin and end of moving KV from the store to here,
    `scheduled_s` the engine first computed something, `done_s` the segment was over and the request not,
    `accepted_s` the next worker had taken it.
    """

    received_s: float | None = None
    fetch_s: float | None = None
    fetched_s: float | None = None
    scheduled_s: float | None = None
    done_s: float | None = None
    accepted_s: float | None = None


class Run(Message):
    """New tokens of one request: `index` is the output index of the first of them, `times_s` the worker's clock.

    `local_cached_tokens` and `store_cached_tokens` (first run of a segment) say how much of the input the engine's own
    prefix cache and the KV store gave; `missed_tokens` what an earlier segment had stored and was not found. `timing`
    comes with a segment's first run, the one that ends it, and the one that tells of the hand-over. `logprobs`, if they
    were asked for, has as many float32 for each token as `logprob_ids` has ids: the token's own, then the likeliest.
    """

    request_id: str
    attempt: int
    index: int
    tokens: bytes = b""
    times_s: tuple[float, ...] = ()
    end: RunEnd | None = None
    started: bool = False
    local_cached_tokens: int = 0
    store_cached_tokens: int = 0
    missed_tokens: int = 0
    failure: Failure | None = None
    timing: Timing | None = None
    logprob_ids: bytes = b""
    logprobs: bytes = b""


class TokenBatch(Message):
    """All new tokens of one worker step for one gateway. `seq` counts the batches of this pair without a hole."""

    worker_id: str
    incarnation: str
    seq: int
    runs: tuple[Run, ...]


class Abort(Message):
    """The client has gone or the attempt is void: stop and free the KV. `attempt` and lower ones are meant."""

    request_id: str
    attempt: int


class Resend(Message):
    """A gap was seen: send the runs of this request from output index `index` again, or say that they are gone."""

    gateway_id: str
    request_id: str
    attempt: int
    index: int


class ResendReply(Message):
    """`run` is None when the worker no longer has what was asked for."""

    run: Run | None = None
