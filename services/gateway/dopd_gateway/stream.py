"""The border between the gateway's text side (HTTP, NATS, tokenizer) and its token side (queue, placement).

The text side hands in an `Inbound` and reads a `TokenStream`; it never sees workers or attempts.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from dopd.errors import RequestError
from dopd.slo import Slo
from dopd_gateway.headers import trace_id_of
from dopd_gateway.timeline import Phase
from dopd_proto.asked import Feature, FinishReason
from dopd_proto.request import Sampling


@dataclass(frozen=True, slots=True)
class Inbound:
    """A validated, tokenized request. `deadline_s` is on the runtime's clock, `traceparent` the caller's span."""

    tokens: list[int]
    sampling: Sampling
    slo: Slo
    deadline_s: float
    priority: int = 0
    traceparent: str = ""

    @property
    def trace_id(self) -> str:
        """The trace that it is in, "" for none: for log lines. (Not bound to the task: one request's task starts
        the next one's work.)"""
        return trace_id_of(self.traceparent)


@dataclass(frozen=True, slots=True)
class Piece:
    """Output tokens in order, each exactly once. `index` is the output index of the first; `end` closes the stream.

    `times_s` are the worker's clock at each token. `logprobs` has, for each token and if they were asked for, ids and
    log-probabilities: the token's own first, then the likeliest.
    """

    index: int
    tokens: tuple[int, ...]
    times_s: tuple[float, ...]
    end: FinishReason | None = None
    logprobs: tuple[tuple[Sequence[int], Sequence[float]], ...] = ()


class TokenStream(Protocol):
    """One request's output."""

    request_id: str

    @property
    def behind(self) -> bool:
        """Whether the reader is: the next piece, or the error, is here already."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces until one has an `end`. Raises RequestError when the request fails."""

    def cancel(self, enough: bool = False) -> None:
        """Abort the work and free its KV: the reader is gone, or has `enough` (a stop string), which is a good end.

        May be called twice.
        """

    def timeline(self) -> list[Phase]:
        """What the request has gone through so far, and after its end in all."""


class Stream:
    """The token side's end of it: a queue between the one who puts in and the one reader. `leave` ends the work, and is
    told whether the reader has enough."""

    def __init__(self, request_id: str, leave: Callable[[bool], None], phases: Callable[[], list[Phase]]) -> None:
        self.request_id = request_id
        self._leave, self.timeline = leave, phases
        self._events: asyncio.Queue[Piece | RequestError] = asyncio.Queue()

    def put(self, event: Piece | RequestError) -> None:
        """Hand a piece, or the error that ends the stream, to the reader."""
        self._events.put_nowait(event)

    @property
    def behind(self) -> bool:
        return not self._events.empty()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            event = await self._events.get()
            if isinstance(event, RequestError):
                raise event
            yield event
            if event.end is not None:
                return

    def cancel(self, enough: bool = False) -> None:
        self._leave(enough)


class TokenGateway(Protocol):
    """What the text side needs of the token side."""

    model: str

    @property
    def max_model_len(self) -> int:
        """The context length in tokens, 0 while no worker has told it."""

    @property
    def features(self) -> Collection[Feature]:
        """What every known worker's engine does of what not all do."""

    def open(self, inbound: Inbound) -> TokenStream:
        """Queue a request. Raises TooManyRequests when the queue is full."""

    def ready(self) -> bool:
        """Whether a worker serves now."""
