"""Before a run: wait until an HTTP server serves, find its model, and find out what it refuses.

Consumes an `HttpTarget` that is connected; produces its `model` and `dropped`, or a LoadError that says what to do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from dopd.errors import LoadError
from dopd_loadgen.completion_events import message_of
from dopd_loadgen.drive import clock
from dopd_loadgen.model import Planned, Record

T = TypeVar("T")

PROBE_S = 30.0
PROBE_TOKENS = 8  # a text of one token there is not where a BOS is put in front
RETRY_S = 0.5
NOT_YET = (429, 502, 503, 504)
_DROPPABLE = {
    "continuous_usage_stats": ("continuous_usage_stats", "stream_options"),
    "stream_options": ("stream_options", "include_usage"),
    "ignore_eos": ("ignore_eos",),
    "min_tokens": ("min_tokens",),
}
"""Fields that some servers refuse, in the order in which they are done without, and the words that name them."""


class Asked(Protocol):
    """What is needed of a target. `dropped` are fields that it no longer sends, `sends` those it would."""

    url: str
    to: str
    model: str
    dropped: set[str]

    @property
    def sends(self) -> frozenset[str]: ...

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page. Raises OSError."""

    async def send(self, planned: Planned, record: Record) -> None: ...


class _NotYet(Exception):
    """The server may serve in a moment."""


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card] = []


async def make_ready(target: Asked, timeout_s: float) -> None:
    """Until a request of one token is answered. Raises LoadError, at once for what waiting does not mend."""
    deadline_s = clock()() + timeout_s
    if not target.model:
        target.model = await _patiently(target, lambda: _first_model(target), deadline_s)
    await _patiently(target, lambda: _probe(target), deadline_s)


async def _patiently(target: Asked, step: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    now = clock()
    while True:
        try:
            return await step()
        except _NotYet as why:
            if now() + RETRY_S > deadline_s:
                raise LoadError(target.url, f"{why}; is the server up, and is this its address?") from None
        await asyncio.sleep(RETRY_S)


async def _first_model(target: Asked) -> str:
    names = await _models(target)
    if not names:
        raise LoadError(f"{target.url}/v1/models", "lists no model; name the one to ask for")
    return names[0]


async def _models(target: Asked) -> list[str]:
    """What the server lists; nothing when it has no list."""
    try:
        async with asyncio.timeout(PROBE_S):
            status, body = await target.get("/v1/models")
    except OSError as error:  # a TimeoutError is one
        raise _NotYet(f"does not answer: {str(error) or type(error).__name__}") from error
    _check_status(target, status, message_of(body))
    try:
        return [card.id for card in msgspec.json.decode(body, type=_Models).data]
    except msgspec.DecodeError:
        return []


def _check_status(target: Asked, status: int, said: str) -> None:
    if status in NOT_YET:
        raise _NotYet(f"is not ready ({status}): {said}")
    if status in (401, 403):
        raise LoadError(target.url, f"refuses the API key, or wants one ({status}): {said}")


async def _probe(target: Asked) -> None:
    """A request of one token. What the server refuses in it is left out from then on."""
    first = ""
    while True:
        record = await _one_token(target)
        if not record.failure:
            return
        first = first or record.detail
        refused = refused_field(record.detail, target.sends) if record.status in (400, 422) else ""
        if not refused:
            raise await _why_not(target, record, first)
        target.dropped.add(refused)


async def _one_token(target: Asked) -> Record:
    # Not the index of a request: its trace id would be that of a request.
    record = Record(-1, isl_tokens=PROBE_TOKENS, osl_tokens=1, intended_s=0.0)
    try:
        async with asyncio.timeout(PROBE_S):
            await target.send(Planned(0, 0.0, isl_tokens=PROBE_TOKENS, osl_tokens=1), record)
    except TimeoutError:
        record.failure, record.detail = "timeout", f"no answer within {PROBE_S:g} s"
    return record


def refused_field(said: str, sent: frozenset[str]) -> str:
    """Which field to do without after this refusal: one that it names, else the next; empty when none is left."""
    left = [name for name in _DROPPABLE if name in sent]
    named = (name for name in left if any(word in said for word in _DROPPABLE[name]))
    return next(named, left[0] if left else "")


async def _why_not(target: Asked, record: Record, said: str) -> Exception:
    status = record.status
    if record.failure in ("connection", "timeout"):
        return _NotYet(f"does not answer: {said}")
    _check_status(target, status, said)
    if status == 404:
        names = await _models(target)
        if names and target.model not in names:
            return LoadError(target.url, f"has no model {target.model!r}; there are: {', '.join(names)}")
        return LoadError(target.to, f"there is nothing at this path (404): {said}")
    return LoadError(target.to, f"a request of one token failed, {record.failure} (status {status}): {said}")
