"""The gateway's text side, one for HTTP and NATS: check a request, tokenize it, queue it, give its answer back as text.

Consumes: `Generate` or `Chat` from either, a `TokenGateway` and a `Vocabulary`. Produces: `Answer`, `Completion`, or
`Chunk`s. Every refusal is a RequestError, raised before anything is queued. The token side enforces the deadline.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from dopd.errors import BadRequest, RequestError
from dopd.runtime.clock import Runtime
from dopd.slo import Slo
from dopd_gateway.answer import Answer
from dopd_gateway.chat_template import checked
from dopd_gateway.rate import Rates
from dopd_gateway.several import Several
from dopd_gateway.stream import Inbound, TokenGateway
from dopd_gateway.text import Vocabulary
from dopd_gateway.validate import check_choices, check_engine, check_fields, check_prompt, prompts_of, sampling_of
from dopd_proto.asked import Asked, Chat, Chunk, Completion, Generate, Model

# Tokenizers make 1-2 MB of text a second: from here on the loop would stand still for milliseconds.
LONG_TEXT_CHARACTERS = 2_000


class TextGateway:
    """Text in, text out."""

    def __init__(
        self,
        gateway: TokenGateway,
        vocabulary: Vocabulary,
        runtime: Runtime,
        slo: Slo,
        timeout_s: float,
        chat_max_tokens: int = 4096,
        rates: Rates | None = None,
    ) -> None:
        """`slo`, `timeout_s` and `chat_max_tokens` are for requests that name none of their own."""
        self.started_s = runtime.now()
        self._gateway, self._vocabulary, self._runtime = gateway, vocabulary, runtime
        self._slo, self._timeout_s, self._chat_max_tokens = slo, timeout_s, chat_max_tokens
        self._rates = rates or Rates(0, 1)

    @property
    def model(self) -> str:
        """The one model served."""
        return self._gateway.model

    @property
    def max_model_len(self) -> int:
        """Its context length in tokens."""
        return self._gateway.max_model_len

    def card(self) -> Model:
        """What is served."""
        return Model(
            model=self.model,
            max_model_len=self.max_model_len,
            created_s=self.started_s,
            features=tuple(sorted(self._gateway.features)),
            chat=self._vocabulary.chats,
        )

    def now(self) -> float:
        """The runtime's clock."""
        return self._runtime.now()

    def ready(self) -> bool:
        """Whether a worker serves now."""
        return self._gateway.ready()

    async def open(self, request: Generate | Chat, key: str = "") -> Answer | Several:
        """Check, tokenize and queue; `key` is whose rate it counts for. Whoever gets the answer reads or closes it."""
        # Before tokenizing: time spent there is the client's, too.
        now_s = self._runtime.now()
        deadline_s = now_s + (self._timeout_s if request.timeout_s is None else request.timeout_s)
        self._rates.take(key, now_s)
        check_fields(request, self.model)
        check_engine(request, self._gateway.features, self.max_model_len)
        prompts = await self._prompts(request)
        check_choices(len(prompts), request.n)
        inbounds = [
            self._inbound(request, tokens, deadline_s, place) for tokens in prompts for place in range(request.n)
        ]
        answers: list[Answer] = []
        try:
            for choice, inbound in enumerate(inbounds):
                echo = self._echo(request, choice // request.n, inbound.tokens)
                stream = self._gateway.open(inbound)
                answers.append(Answer(request, inbound.tokens, stream, self._vocabulary, choice, echo))
        except RequestError:
            for answer in answers:
                answer.close()
            raise
        return answers[0] if len(answers) == 1 else Several(answers, request.n)

    async def complete(self, request: Generate | Chat, key: str = "") -> Completion:
        """The whole answer. Cancelling this call aborts the work."""
        return await (await self.open(request, key)).whole()

    async def stream(self, request: Generate | Chat, key: str = "") -> AsyncGenerator[Chunk | Completion, None]:
        """Chunks, then the Completion. Leaving early aborts the work."""
        answer = await self.open(request, key)
        async with aclosing(answer.parts()) as parts:
            async for part in parts:
                yield part.chunk
                if part.end is not None:
                    yield part.end

    async def tokenize(self, model: str, text: str, special: bool) -> list[int]:
        """The text's ids. Raises UnknownModel."""
        check_fields(Asked(model=model), self.model)
        return await self._encode(text, special)

    async def tokenize_chat(self, request: Chat) -> list[int]:
        """The ids of the prompt that the messages make. Raises UnknownModel or BadRequest."""
        check_fields(request, self.model)
        return (await self._prompts(request))[0]

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """The text of these ids. Raises UnknownModel, or BadRequest for ids that are none."""
        check_fields(Asked(model=model), self.model)
        size = self._vocabulary.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise BadRequest(f"tokens has the id {token}, but ids are 0 to {size - 1}", "tokens")
        if len(tokens) < LONG_TEXT_CHARACTERS:
            return self._vocabulary.decode(tokens)
        return await self._runtime.compute(lambda: self._vocabulary.decode(tokens))

    async def _prompts(self, request: Generate | Chat) -> list[list[int]]:
        if isinstance(request, Chat):
            return [await self._encode(self._chat_text(request), special=False)]
        prompts = prompts_of(request.prompt)
        check_choices(len(prompts), request.n)
        return [await self._encode(each, True) if isinstance(each, str) else each for each in prompts]

    def _chat_text(self, request: Chat) -> str:
        messages: list[Mapping[str, Any]] = list(checked(request.messages))
        extra = request.chat_template_kwargs
        return self._vocabulary.chat(messages, request.add_generation_prompt, extra, self._runtime.now())

    async def _encode(self, text: str, special: bool) -> list[int]:
        if len(text) < LONG_TEXT_CHARACTERS:
            return self._vocabulary.encode(text, special)
        return await self._runtime.compute(lambda: self._vocabulary.encode(text, special))

    def _inbound(self, request: Generate | Chat, tokens: list[int], deadline_s: float, place: int) -> Inbound:
        size, most = self._vocabulary.vocab_size, self.max_model_len
        check_prompt(tokens, request, size, most)
        sampling = sampling_of(request, size, len(tokens), most, self._chat_max_tokens, place)
        ttft_s, tpot_s = request.slo_ttft_s, request.slo_tpot_s
        slo = Slo(self._slo.ttft_s if ttft_s is None else ttft_s, self._slo.tpot_s if tpot_s is None else tpot_s)
        return Inbound(tokens, sampling, slo, deadline_s, request.priority, request.traceparent)

    def _echo(self, request: Generate | Chat, place: int, tokens: list[int]) -> str:
        if not isinstance(request, Generate) or not request.echo:
            return ""
        prompt = prompts_of(request.prompt)[place]
        return prompt if isinstance(prompt, str) else self._vocabulary.decode(tokens)
