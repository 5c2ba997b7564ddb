"""Answers in OpenAI's text completion format. Pure.

Consumes: our `Completion`, `Part` and `Failure`. Produces: JSON bytes, and server-sent events.
"""

from typing import Any

import msgspec

from dopd_gateway.answer import Part
from dopd_gateway.openai_parse import Ask
from dopd_proto.base import unpack_tokens
from dopd_proto.request import Completion, Failure, Usage


def error_json(failure: Failure) -> bytes:
    """OpenAI's error object."""
    kind = "invalid_request_error" if failure.status < 500 else "server_error"
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
    """Writes one answer, plain or as server-sent events. `prompt` is there when its ids were asked for."""

    def __init__(self, ask: Ask, request_id: str, created_s: float, prompt: list[int]) -> None:
        self._with_ids, self._prompt = ask.generate.return_tokens, prompt
        self._with_usage, self._each_with_usage = ask.include_usage, ask.continuous_usage
        self._head = {
            "id": request_id,
            "object": "text_completion",
            "created": int(created_s),
            "model": ask.generate.model,
        }
        self._first = True

    def plain(self, completion: Completion) -> bytes:
        """The body of an answer that is not streamed."""
        choice = self._choice(completion.text, completion.tokens, completion.finish_reason)
        body = {**self._head, "choices": [choice], "usage": _usage(completion.usage), **_timeline(completion)}
        return msgspec.json.encode(body)

    def events(self, part: Part) -> bytes:
        """One event for the part, with the finish reason in the last; then usage if asked for, and the end mark.

        The finish does not get an event of its own: clients that time events would count it as a token.
        """
        text, packed = (part.chunk.text, part.chunk.tokens) if part.chunk is not None else ("", b"")
        choice = self._choice(text, packed, part.end.finish_reason if part.end is not None else None)
        body = {**self._head, "choices": [choice], **self._usage_so_far(part)}
        if part.end is None:
            return event(msgspec.json.encode(body))
        if not self._with_usage:
            return event(msgspec.json.encode({**body, **_timeline(part.end)})) + _DONE
        usage = {**self._head, "choices": [], "usage": _usage(part.end.usage), **_timeline(part.end)}
        return event(msgspec.json.encode(body)) + event(msgspec.json.encode(usage)) + _DONE

    def _usage_so_far(self, part: Part) -> dict[str, Any]:
        if self._each_with_usage:
            return {"usage": _usage(Usage(prompt_tokens=len(self._prompt), completion_tokens=part.so_far))}
        return {"usage": None} if self._with_usage else {}

    def _choice(self, text: str, packed: bytes, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        if self._with_ids:
            choice["token_ids"] = unpack_tokens(packed)
            if self._first:
                choice["prompt_token_ids"] = self._prompt
        self._first = False
        return choice


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


_DONE = event(b"[DONE]")
