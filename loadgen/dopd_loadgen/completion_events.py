"""The events of a streamed completion, read into a `Record`. Pure.

Consumes the data of server-sent events in OpenAI's text completion format, with the time each came in; produces the
record's batches, and the failure when the stream was not whole.
"""

from typing import Any

import msgspec

from dopd_loadgen.model import Failure, Phase, Record

DETAIL_CHARACTERS = 400
DONE = b"[DONE]"


class Unanswered(Exception):
    """Why a request has no whole answer."""

    def __init__(self, kind: Failure, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail[:DETAIL_CHARACTERS]


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    """Only what is needed: everything else in the JSON is skipped."""

    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    timeline: tuple[Phase, ...] = ()


_decode = msgspec.json.Decoder(_Event).decode


class Reading:
    """One stream on its way into a record.

    Where the server says with each event how many tokens there are so far (`continuous_usage_stats`), batches hold
    exactly these, also when they have no text. Elsewhere each event with text is one token at first, as in
    `vllm bench serve`; if the number of tokens at the end is another one, it is spread over the events (`spread`).
    """

    def __init__(self, record: Record) -> None:
        self.over = False
        self._record = record
        self._counted = 0
        self._exact = False
        self._total: int | None = None

    def take(self, data: bytes, at_s: float) -> None:
        """One event, which came in at `at_s`. Raises Unanswered for one that cannot be read, or says an error."""
        if data == DONE:
            self.over = True
            return
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unanswered("malformed", f"{error} in the event {_shown(data)}") from error
        choices, usage = event.choices, event.usage
        if choices:
            self._tokens(choices[0], usage, at_s)
        if usage is not None:
            self._total = usage.completion_tokens
        if not choices or choices[0].finish_reason is not None:
            self._rare(event, data)

    def settle(self) -> None:
        """The stream has ended in good order. Raises Unanswered when the answer is not whole."""
        record = self._record
        if not record.finish_reason:
            raise Unanswered("truncated", f"the stream ended after {self._counted} tokens without a finish")
        total = self._total
        if total is None:
            # It does not count for us. But who ended because of the length has made all that were asked for.
            total = record.osl_tokens if record.finish_reason == "length" else self._counted
        if total != self._counted:
            self._correct(total)
        if record.forced and total < record.osl_tokens:
            raise Unanswered("short", f"{total} of {record.osl_tokens} tokens, finish reason {record.finish_reason!r}")
        record.failure = ""

    def _tokens(self, choice: _Choice, usage: _Usage | None, at_s: float) -> None:
        record = self._record
        if usage is not None and (self._exact or not self._counted):
            self._exact = True
            count = usage.completion_tokens - self._counted
        else:
            count = 1 if choice.text else 0
        if count > 0:
            self._counted += count
            record.times_s.append(at_s)
            record.counts.append(count)

    def _rare(self, event: _Event, data: bytes) -> None:
        """The finish, the usage at the end, errors."""
        record = self._record
        if event.choices:
            record.finish_reason = event.choices[0].finish_reason or ""
        elif event.usage is None and not event.timeline:
            raise Unanswered("server_error", message_of(data))
        if event.error is not None:
            raise Unanswered("server_error", message_of(data))
        if event.usage is not None:
            record.prompt_tokens = event.usage.prompt_tokens
        record.timeline = event.timeline or record.timeline
        record.request_id = event.id or record.request_id

    def _correct(self, total: int) -> None:
        record = self._record
        if self._exact and record.counts and total > self._counted:
            record.counts[-1] += total - self._counted
            return
        counts = spread(total, len(record.counts))
        record.times_s = [time_s for time_s, count in zip(record.times_s, counts, strict=True) if count]
        record.counts = [count for count in counts if count]


def spread(total: int, events: int) -> list[int]:
    """`total` tokens over so many events: one on the first, which a prefill makes, the rest evenly over the others.

    With fewer tokens than events some get none; the first and the last keep theirs as long as there are two tokens.
    """
    if events <= 1 or total <= 0:
        return [max(0, total)] * events
    upto = [1 + (total - 1) * i // (events - 1) for i in range(events)]
    return [b - a for a, b in zip([0, *upto], upto, strict=False)]


def kind_of(status: int) -> Failure:
    """The failure that a status other than that of an answer stands for; 504 is the deadline on the server's clock."""
    if status in (429, 503):
        return "rejected"
    if status >= 500:
        return "timeout" if status == 504 else "server_error"
    return "client_error" if status >= 400 else "malformed"


def message_of(body: bytes) -> str:
    """What an error body says: OpenAI's `error.message`, a plain `message` or `detail`, else the text itself."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _shown(body)
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    return said[:DETAIL_CHARACTERS] if isinstance(said, str) else _shown(body)


def _shown(body: bytes) -> str:
    return body[:DETAIL_CHARACTERS].decode(errors="replace")
