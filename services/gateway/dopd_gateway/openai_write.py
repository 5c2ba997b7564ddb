"""Answers in OpenAI's formats. Pure.

Consumes: our `Completion`, `Part` and `Failure`. Produces: JSON bytes, and server-sent events.
"""

from typing import Any

import msgspec

from dopd_gateway.answer import Part
from dopd_gateway.openai_parse import Ask
from dopd_proto.asked import Chat, Choice, Chunk, Completion, Failure, TokenLogprob, Usage
from dopd_proto.base import unpack_tokens


def error_json(failure: Failure) -> bytes:
    """OpenAI's error object."""
    kind = "invalid_request_error" if failure.status < 500 else "server_error"
    if failure.status == 429:
        kind = "rate_limit_error"
    error = {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}
    return msgspec.json.encode({"error": error})


def _usage(usage: Usage) -> dict[str, int]:
    both = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": both,
    }


def _timeline(completion: Completion) -> dict[str, Any]:
    """In the last object of an answer, if it was asked for."""
    return {"timeline": completion.timeline} if completion.timeline else {}


class Writer:
    """Writes one answer, plain or as server-sent events. `prompts` are there when their ids were asked for."""

    def __init__(self, ask: Ask, request_id: str, created_s: float, prompts: list[list[int]]) -> None:
        self._with_ids, self._prompts, self._n = ask.asked.return_tokens, prompts, ask.asked.n
        self._with_usage, self._each_with_usage = ask.include_usage, ask.continuous_usage
        self._prompt_tokens = sum(map(len, prompts))
        self._choice = _ChatChoice() if isinstance(ask.asked, Chat) else _TextChoice()
        self._head = {"id": request_id, "created": int(created_s), "model": ask.asked.model}
        self._begun: set[int] = set()

    def plain(self, completion: Completion) -> bytes:
        """The body of an answer that is not streamed."""
        first = Choice(
            choice=0, finish_reason=completion.finish_reason, text=completion.text, tokens=completion.tokens,
            logprobs=completion.logprobs,
        )  # fmt: skip
        choices = [self._with_token_ids(self._choice.whole(each), each) for each in (first, *completion.more)]
        body = {**self._head, "object": self._choice.whole_object, "choices": choices}
        return msgspec.json.encode({**body, "usage": _usage(completion.usage), **_timeline(completion)})

    def events(self, part: Part) -> bytes:
        """One event for the part, with the finish reason in the last; then usage if asked for, and the end mark.

        The finish does not get an event of its own: clients that time events would count it as a token.
        """
        chunk = part.chunk
        first = chunk.choice not in self._begun
        choice = self._choice.piece(chunk, first)
        if self._with_ids:
            self._with_token_ids(choice, chunk)
        if first:
            self._begun.add(chunk.choice)
        body = {**self._head, "object": self._choice.piece_object, "choices": [choice]}
        if self._with_usage:
            body["usage"] = self._usage_so_far(part)
        if part.end is None:
            return event(msgspec.json.encode(body))
        if not self._with_usage:
            return event(msgspec.json.encode({**body, **_timeline(part.end)})) + _DONE
        usage = {**body, "choices": [], "usage": _usage(part.end.usage), **_timeline(part.end)}
        return event(msgspec.json.encode(body)) + event(msgspec.json.encode(usage)) + _DONE

    def _usage_so_far(self, part: Part) -> dict[str, int] | None:
        if not self._each_with_usage:
            return None
        return _usage(Usage(prompt_tokens=self._prompt_tokens, completion_tokens=part.so_far))

    def _with_token_ids(self, choice: dict[str, Any], said: Chunk | Choice) -> dict[str, Any]:
        if self._with_ids:
            choice["token_ids"] = unpack_tokens(said.tokens)
            if said.choice not in self._begun:
                choice["prompt_token_ids"] = self._prompts[said.choice // self._n]
        return choice


class _TextChoice:
    """The choices of `/v1/completions`. Log-probabilities tell where in the text each token begins."""

    whole_object = piece_object = "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def whole(self, choice: Choice) -> dict[str, Any]:
        return self.piece(choice, first=True)

    def piece(self, said: Chunk | Choice, first: bool) -> dict[str, Any]:
        logprobs = self._logprobs(said.choice, said.logprobs) if said.logprobs else None
        return {"index": said.choice, "text": said.text, "logprobs": logprobs, "finish_reason": said.finish_reason}

    def _logprobs(self, index: int, made: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        offsets, offset = [], self._offsets.get(index, 0)
        for each in made:
            offsets.append(offset)
            offset += len(each.token)
        self._offsets[index] = offset
        # The token itself is among them even if it is none of the likeliest.
        top = [{each.token: each.logprob} | {t.token: t.logprob for t in each.top} for each in made]
        return {
            "text_offset": offsets,
            "tokens": [each.token for each in made],
            "token_logprobs": [each.logprob for each in made],
            "top_logprobs": top,
        }


class _ChatChoice:
    """The choices of `/v1/chat/completions`."""

    whole_object, piece_object = "chat.completion", "chat.completion.chunk"

    def whole(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = _content(choice.logprobs)
        return {
            "index": choice.choice, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason,
        }  # fmt: skip

    def piece(self, chunk: Chunk, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": chunk.text} if first else {"content": chunk.text}
        logprobs = _content(chunk.logprobs)
        return {"index": chunk.choice, "delta": delta, "logprobs": logprobs, "finish_reason": chunk.finish_reason}


def _content(made: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    if not made:
        return None
    content = [
        {**_token(e.token, e.logprob), "top_logprobs": [_token(t.token, t.logprob) for t in e.top]} for e in made
    ]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


_DONE = event(b"[DONE]")
