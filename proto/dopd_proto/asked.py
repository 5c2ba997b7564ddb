"""What clients ask and get: completions and chats, their answers in pieces or whole, models, and failures.

Over NATS these are the messages; over HTTP the same fields in OpenAI's words.
"""

from collections.abc import Sequence
from typing import Any, Literal

from dopd_proto.base import Message

FinishReason = Literal["stop", "length"]
Feature = Literal["logprobs", "penalties", "logit_bias", "json_schema"]
"""What an engine may or may not do with a request; workers tell in their state which of it they do."""


class Failure(Message):
    """An error as it crosses processes; over HTTP the same fields in OpenAI's shape.

    `status` is the HTTP status, `retryable` says whether the same request may succeed if sent again, and
    `retry_after_s` when, where that is known.
    """

    code: str
    message: str
    status: int
    param: str | None = None
    retryable: bool = False
    retry_after_s: float | None = None


class Asked(Message, kw_only=True, forbid_unknown_fields=True):
    """What a completion and a chat have in common.

    `max_tokens` None: 16 for a completion, for a chat what is left of the context up to the gateway's limit.
    `logprobs`: so many of the likeliest tokens beside each token's own log-probability; None for none.
    `response_format` is OpenAI's object. `timeout_s` bounds the whole request (default: the gateway's). `slo_ttft_s`
    and `slo_tpot_s` are its targets (default: the cluster's). `timeline` asks for the request's phases with its end.
    `traceparent` (W3C Trace Context) puts its spans into the caller's trace.
    """

    model: str
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = []  # noqa: RUF012 - msgspec gives each message a list of its own
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}  # noqa: RUF012
    logprobs: int | None = None
    n: int = 1
    response_format: dict[str, Any] | None = None
    ignore_eos: bool = False
    stream: bool = False
    return_tokens: bool = False
    timeout_s: float | None = None
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    priority: int = 0
    timeline: bool = False
    traceparent: str = ""


class Generate(Asked, kw_only=True, forbid_unknown_fields=True):
    """The public NATS request on `dopd.v1.generate`: a completion, streamed to the caller's inbox if `stream`.

    `prompt` is text, token ids, or a list of either, which gives a choice for each. `echo` puts the prompt before the
    answer.
    """

    prompt: str | Sequence[int | str | list[int]]
    echo: bool = False


class Chat(Asked, kw_only=True, forbid_unknown_fields=True):
    """The public NATS request on `dopd.v1.chat`: the model's chat template makes the prompt out of `messages`.

    Each has `role` and `content` (text, or a list of text parts) and may have `name`.
    """

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = {}  # noqa: RUF012


class ModelsRequest(Message, forbid_unknown_fields=True):
    """The public NATS request on `dopd.v1.models`."""


class Model(Message):
    """A model that is served: its context in tokens (0 while no worker serves), and what its engines can do."""

    model: str
    max_model_len: int
    created_s: float
    features: tuple[Feature, ...] = ()
    chat: bool = False


class ModelsReply(Message):
    """Every model that the gateway serves."""

    models: tuple[Model, ...]


class Usage(Message):
    """Token counts as one engine would report them."""

    prompt_tokens: int
    completion_tokens: int


class TopLogprob(Message):
    """One of the likeliest tokens at a place."""

    token: str
    token_id: int
    logprob: float


class TokenLogprob(Message):
    """A token's own log-probability, before temperature and penalties, and the likeliest in its place."""

    token: str
    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class Chunk(Message):
    """A piece of a streamed completion. `index` is the output index of its first token, `seq` counts chunks.

    `choice` tells the answers of a request for several apart; the last chunk of each has its `finish_reason`.
    """

    request_id: str
    seq: int
    index: int
    text: str
    tokens: bytes = b""
    choice: int = 0
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Choice(Message):
    """One of several answers to a request."""

    choice: int
    finish_reason: FinishReason
    text: str
    tokens: bytes = b""
    logprobs: tuple[TokenLogprob, ...] = ()


class Completion(Message):
    """The end of a completion. Streamed: `text`, `tokens` and `logprobs` are empty and `seq` is the number of chunks.

    Of several answers these fields are the first, and `more` has the others (streamed: their chunks had it all).
    `timeline`, if it was asked for: name, start and end (seconds since the epoch) and process of each phase.
    """

    request_id: str
    model: str
    finish_reason: FinishReason
    usage: Usage
    text: str = ""
    tokens: bytes = b""
    seq: int = 0
    timeline: tuple[tuple[str, float, float, str], ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    more: tuple[Choice, ...] = ()
