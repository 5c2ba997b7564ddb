"""One answer on its way: the token stream of the inner side, as text, with its usage.

Consumes: a `TokenStream` and the decoder of its vocabulary. Produces: `Part`s, each with a `Chunk` and, at the end, the
`Completion`. However the reader leaves, the token stream is ended or cancelled: an abandoned answer must free its KV.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from dopd.errors import RequestError
from dopd_gateway.likely import Likely
from dopd_gateway.stream import Piece, TokenStream
from dopd_gateway.text import TextStream, Vocabulary
from dopd_proto.asked import Asked, Chunk, Completion, FinishReason, Usage
from dopd_proto.base import pack_tokens


@dataclass(frozen=True, slots=True)
class Part:
    """What one step brought: text or tokens, with or without the end. `so_far` counts the answer's tokens."""

    chunk: Chunk
    end: Completion | None = None
    so_far: int = 0


class Answer:
    """One request's answer. `parts` may be read once. `echo` is text to show before it."""

    def __init__(
        self,
        request: Asked,
        prompt: list[int],
        stream: TokenStream,
        vocabulary: Vocabulary,
        choice: int = 0,
        echo: str = "",
    ) -> None:
        self.prompts = [prompt]
        self.request_id = stream.request_id
        self._request, self._stream, self._vocabulary = request, stream, vocabulary
        self._text = TextStream(vocabulary.stepper(prompt), request.stop, request.min_tokens)
        self._likely = Likely(vocabulary, request.logprobs or 0)
        self._choice, self._echo = choice, echo
        self._count = self._chunks = 0
        self._over = False

    @property
    def behind(self) -> bool:
        """Whether the reader is: what comes next is here already."""
        return self._stream.behind

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Parts until one has an end. Raises RequestError when the request fails."""
        try:
            async for piece in self._stream:
                part = self._part(piece)
                self._over = piece.end is not None
                if part is None:
                    continue
                if part.end is not None:
                    # Before the reader has it: a stop string frees the KV however slow the reader is.
                    self.close(enough=True)
                yield part
                if part.end is not None:
                    return
            raise RequestError("the tokens ended without a finish")
        except RequestError:
            self._over = True
            raise
        finally:
            self.close()

    async def whole(self) -> Completion:
        """All of it at once."""
        chunks: list[Chunk] = []
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                chunks.append(part.chunk)
                if part.end is not None:
                    return self._completion(part.end.finish_reason, chunks)
        raise RequestError("the answer ended without a finish")  # pragma: no cover - `parts` has raised

    def close(self, enough: bool = False) -> None:
        """The reader has gone or has enough. May be called twice, and before or after reading."""
        if not self._over:
            self._over = True
            self._stream.cancel(enough)

    def _part(self, piece: Piece) -> Part | None:
        shown = self._text.feed(self._visible(piece))
        tokens = piece.tokens[: shown.tokens] if shown.stopped else piece.tokens
        end: FinishReason | None = "stop" if shown.stopped else piece.end
        self._count += len(tokens)
        text = shown.text + self._text.flush() if end else shown.text
        if self._echo:
            text, self._echo = self._echo + text, ""
        if not (text or tokens or end):
            return None
        chunk = self._chunk(piece, text, tokens, end)
        return Part(chunk, self._completion(end) if end else None, self._count)

    def _visible(self, piece: Piece) -> tuple[int, ...]:
        """The end-of-sequence token counts, but is no text, whether or not the vocabulary calls it special."""
        ended = piece.end == "stop" and piece.tokens and piece.tokens[-1] in self._vocabulary.eos_token_ids
        return piece.tokens[:-1] if ended else piece.tokens

    def _chunk(self, piece: Piece, text: str, tokens: tuple[int, ...], end: FinishReason | None) -> Chunk:
        # A chunk without text is sent, too: it tells that tokens came, which is what latencies are measured by.
        chunk = Chunk(
            request_id=self.request_id,
            seq=self._chunks,
            index=piece.index,
            text=text,
            tokens=pack_tokens(tokens) if self._request.return_tokens else b"",
            choice=self._choice,
            finish_reason=end,
            logprobs=self._likely.named(piece.logprobs[: len(tokens)]) if piece.logprobs else (),
        )
        self._chunks += 1
        return chunk

    def _completion(self, end: FinishReason, chunks: list[Chunk] | None = None) -> Completion:
        """The end; with the chunks it has all of the answer."""
        phases = self._stream.timeline() if self._request.timeline else []
        return Completion(
            request_id=self.request_id,
            model=self._request.model,
            finish_reason=end,
            usage=Usage(prompt_tokens=len(self.prompts[0]), completion_tokens=self._count),
            text="".join([chunk.text for chunk in chunks or ()]),
            tokens=b"".join([chunk.tokens for chunk in chunks or ()]),
            logprobs=tuple([each for chunk in chunks or () for each in chunk.logprobs]),
            seq=self._chunks if chunks is None else 0,
            timeline=tuple((name, start_s, end_s, place.where) for name, start_s, end_s, place in phases),
        )
