"""One answer on its way: the token stream of the inner side, as text, with its usage.

Consumes: a `TokenStream` and the decoder of its vocabulary. Produces: `Part`s, each with a `Chunk` and, at the end, the
`Completion`. However the reader leaves, the token stream is ended or cancelled: an abandoned answer must free its KV.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from dopd.errors import RequestError
from dopd_gateway.stream import Piece, TokenStream
from dopd_gateway.text import TextStream, Vocabulary
from dopd_proto.base import pack_tokens
from dopd_proto.request import Chunk, Completion, FinishReason, Generate, Usage


@dataclass(frozen=True, slots=True)
class Part:
    """What one step brought: text or tokens, the end, or both. `so_far` counts the answer's tokens up to here."""

    chunk: Chunk | None
    end: Completion | None = None
    so_far: int = 0


class Answer:
    """One request's answer. `parts` may be read once."""

    def __init__(self, request: Generate, prompt: list[int], stream: TokenStream, vocabulary: Vocabulary) -> None:
        self.prompt = prompt
        self.request_id = stream.request_id
        self._request, self._stream, self._eos = request, stream, vocabulary.eos_token_ids
        self._text = TextStream(vocabulary.stepper(prompt), request.stop, request.min_tokens)
        self._count = self._chunks = 0
        self._over = False

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Parts until one has an end. Raises RequestError when the request fails."""
        try:
            async for piece in self._stream:
                part = self._part(piece)
                self._over = piece.end is not None
                if part.end is not None:
                    # Before the reader has it: a stop string frees the KV however slow the reader is.
                    self.close()
                if part.chunk is not None or part.end is not None:
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
        texts: list[str] = []
        packed: list[bytes] = []
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                if part.chunk is not None:
                    texts.append(part.chunk.text)
                    packed.append(part.chunk.tokens)
                if part.end is not None:
                    return self._completion(part.end.finish_reason, "".join(texts), b"".join(packed), seq=0)
        raise RequestError("the answer ended without a finish")  # pragma: no cover - `parts` has raised

    def close(self) -> None:
        """The reader has gone or has enough. May be called twice, and before or after reading."""
        if not self._over:
            self._over = True
            self._stream.cancel()

    def _part(self, piece: Piece) -> Part:
        shown = self._text.feed(self._visible(piece))
        tokens = piece.tokens[: shown.tokens] if shown.stopped else piece.tokens
        end: FinishReason | None = "stop" if shown.stopped else piece.end
        self._count += len(tokens)
        text = shown.text + (self._text.flush() if end else "")
        chunk = self._chunk(piece.index, text, tokens) if text or tokens else None
        return Part(chunk, self._completion(end, seq=self._chunks) if end else None, self._count)

    def _visible(self, piece: Piece) -> tuple[int, ...]:
        """The end-of-sequence token counts, but is no text, whether or not the vocabulary calls it special."""
        ended = piece.end == "stop" and piece.tokens and piece.tokens[-1] in self._eos
        return piece.tokens[:-1] if ended else piece.tokens

    def _chunk(self, index: int, text: str, tokens: tuple[int, ...]) -> Chunk:
        # A chunk without text is sent, too: it tells that tokens came, which is what latencies are measured by.
        packed = pack_tokens(tokens) if self._request.return_tokens else b""
        chunk = Chunk(request_id=self.request_id, seq=self._chunks, index=index, text=text, tokens=packed)
        self._chunks += 1
        return chunk

    def _completion(self, end: FinishReason, text: str = "", tokens: bytes = b"", *, seq: int) -> Completion:
        usage = Usage(prompt_tokens=len(self.prompt), completion_tokens=self._count)
        phases = self._stream.timeline() if self._request.timeline else []
        return Completion(
            request_id=self.request_id,
            model=self._request.model,
            finish_reason=end,
            usage=usage,
            text=text,
            tokens=tokens,
            seq=seq,
            timeline=tuple((name, start_s, end_s, place.where) for name, start_s, end_s, place in phases),
        )
