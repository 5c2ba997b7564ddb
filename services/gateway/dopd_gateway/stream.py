"""The border between the gateway's text side (HTTP, NATS, tokenizer) and its token side (queue, placement).

The text side hands in an `Inbound` and reads a `TokenStream`; it never sees workers or attempts.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from dopd.slo import Slo
from dopd_proto.request import FinishReason, Sampling


@dataclass(frozen=True, slots=True)
class Inbound:
    """A validated, tokenized request. `deadline_s` is on the runtime's clock."""

    tokens: list[int]
    sampling: Sampling
    slo: Slo
    deadline_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Output tokens in order, each exactly once. `index` is the output index of the first; `end` closes the stream.

    `times_s` are the worker's clock at each token.
    """

    index: int
    tokens: tuple[int, ...]
    times_s: tuple[float, ...]
    end: FinishReason | None = None


class TokenStream(Protocol):
    """One request's output."""

    request_id: str

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces until one has an `end`. Raises RequestError when the request fails."""

    def cancel(self) -> None:
        """The reader is gone or has enough (stop string): abort the work and free its KV. May be called twice."""


class TokenGateway(Protocol):
    """What the text side needs of the token side."""

    model: str

    @property
    def max_model_len(self) -> int:
        """The context length in tokens, 0 while no worker has told it."""

    def open(self, inbound: Inbound) -> TokenStream:
        """Queue a request. Raises Unavailable when the queue is full."""

    def ready(self) -> bool:
        """Whether a worker serves now."""
