"""Several answers to one request: each prompt `n` times, read as one answer.

Consumes: `Answer`s. Produces: what an `Answer` does; parts come as they are made, and tell their choice. One that
fails, or a reader who leaves, ends all.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec.structs import replace

from dopd.errors import RequestError
from dopd_gateway.answer import Answer, Part
from dopd_proto.asked import Choice, Chunk, Completion, Usage


class Several:
    """`answers` are in the order of their choices, `n` for each prompt."""

    def __init__(self, answers: list[Answer], n: int) -> None:
        self._answers, self._n = answers, n
        self.prompts = [prompt for answer in answers[::n] for prompt in answer.prompts]
        self.request_id = answers[0].request_id
        self._parts: asyncio.Queue[Part | BaseException] = asyncio.Queue()

    @property
    def behind(self) -> bool:
        """Whether the reader is: what comes next is here already."""
        return not self._parts.empty()

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Parts of all until the last one has an end. Raises RequestError when one fails."""
        reading = [asyncio.create_task(self._read(answer)) for answer in self._answers]
        ends: dict[int, Completion] = {}
        tokens = [0] * len(self._answers)
        chunks = 0
        try:
            while True:
                part = await self._parts.get()
                if isinstance(part, BaseException):
                    raise part
                chunk = replace(part.chunk, request_id=self.request_id, seq=chunks)
                chunks += 1
                tokens[chunk.choice] = part.so_far
                if part.end is not None:
                    ends[chunk.choice] = part.end
                over = len(ends) == len(self._answers)
                yield Part(chunk, self._completion(ends, chunks) if over else None, sum(tokens))
                if over:
                    return
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            self.close()

    async def whole(self) -> Completion:
        """All of them at once."""
        chunks: list[list[Chunk]] = [[] for _ in self._answers]
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                chunks[part.chunk.choice].append(part.chunk)
                if part.end is not None:
                    first, *more = [_choice(place, made) for place, made in enumerate(chunks)]
                    return replace(
                        part.end, finish_reason=first.finish_reason, text=first.text, tokens=first.tokens,
                        logprobs=first.logprobs, more=tuple(more), seq=0,
                    )  # fmt: skip
        raise RequestError("the answers ended without a finish")  # pragma: no cover - `parts` has raised

    def close(self) -> None:
        """The reader has gone or has enough."""
        for answer in self._answers:
            answer.close()

    async def _read(self, answer: Answer) -> None:
        try:
            async with aclosing(answer.parts()) as parts:
                async for part in parts:
                    self._parts.put_nowait(part)
        except Exception as error:
            self._parts.put_nowait(error)

    def _completion(self, ends: dict[int, Completion], chunks: int) -> Completion:
        usage = Usage(
            prompt_tokens=sum(map(len, self.prompts)),
            completion_tokens=sum(end.usage.completion_tokens for end in ends.values()),
        )
        return replace(ends[0], request_id=self.request_id, usage=usage, seq=chunks)


def _choice(place: int, chunks: list[Chunk]) -> Choice:
    last = chunks[-1].finish_reason
    assert last is not None
    return Choice(
        choice=place,
        finish_reason=last,
        text="".join(chunk.text for chunk in chunks),
        tokens=b"".join(chunk.tokens for chunk in chunks),
        logprobs=tuple(each for chunk in chunks for each in chunk.logprobs),
    )
