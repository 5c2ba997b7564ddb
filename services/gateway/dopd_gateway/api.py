"""The gateway's text side, one for HTTP and NATS: check a request, tokenize it, queue it, give its answer back as text.

Consumes: `Generate` from either, a `TokenGateway` and a `Vocabulary`. Produces: `Answer`, `Completion`, or `Chunk`s.
Every refusal is a RequestError, raised before anything is queued. The token side enforces the deadline.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from dopd.runtime.clock import Runtime
from dopd.slo import Slo
from dopd_gateway.answer import Answer
from dopd_gateway.stream import Inbound, TokenGateway
from dopd_gateway.text import Vocabulary
from dopd_gateway.validate import check_fields, check_prompt, sampling_of
from dopd_proto.request import Chunk, Completion, Generate

# Tokenizers make 1-2 MB of text a second: from here on the loop would stand still for milliseconds.
LONG_TEXT_CHARACTERS = 2_000


class TextGateway:
    """Text in, text out."""

    def __init__(
        self, gateway: TokenGateway, vocabulary: Vocabulary, runtime: Runtime, slo: Slo, timeout_s: float
    ) -> None:
        self.started_s = runtime.now()
        self._gateway, self._vocabulary, self._runtime = gateway, vocabulary, runtime
        self._slo, self._timeout_s = slo, timeout_s

    @property
    def model(self) -> str:
        """The one model served."""
        return self._gateway.model

    @property
    def max_model_len(self) -> int:
        """Its context length in tokens."""
        return self._gateway.max_model_len

    def now(self) -> float:
        """The runtime's clock."""
        return self._runtime.now()

    def ready(self) -> bool:
        """Whether a worker serves now."""
        return self._gateway.ready()

    async def open(self, request: Generate) -> Answer:
        """Check, tokenize and queue. Whoever gets the answer reads or closes it."""
        # Before tokenizing: time spent there is the client's, too.
        deadline_s = self._runtime.now() + (self._timeout_s if request.timeout_s is None else request.timeout_s)
        check_fields(request, self.model)
        tokens = await self._tokens(request.prompt)
        check_prompt(tokens, request, self._vocabulary.vocab_size, self.max_model_len)
        sampling = sampling_of(request, self._vocabulary.vocab_size)
        stream = self._gateway.open(
            Inbound(tokens, sampling, self._slo, deadline_s, request.priority, request.traceparent)
        )
        return Answer(request, tokens, stream, self._vocabulary)

    async def complete(self, request: Generate) -> Completion:
        """The whole answer. Cancelling this call aborts the work."""
        return await (await self.open(request)).whole()

    async def stream(self, request: Generate) -> AsyncGenerator[Chunk | Completion, None]:
        """Chunks, then the Completion. Leaving early aborts the work."""
        answer = await self.open(request)
        async with aclosing(answer.parts()) as parts:
            async for part in parts:
                if part.chunk is not None:
                    yield part.chunk
                if part.end is not None:
                    yield part.end

    async def _tokens(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) < LONG_TEXT_CHARACTERS:
            return self._vocabulary.encode(prompt)
        return await self._runtime.compute(lambda: self._vocabulary.encode(prompt))
