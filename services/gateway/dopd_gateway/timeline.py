"""Where one request was from when to when. Pure.

Consumes the gateway's own times, and the `Timing`s and token times that come from workers; produces `Phase`s. Each
begins where the one before it ends, so that they add up to the whole, whatever happens to the request. One more,
`first_token_sent`, runs beside the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dopd_proto.request import Timing

Name = Literal[
    "queued", "sent", "prefill_queued", "prefilling", "first_token_sent", "handing_over", "kv_transfer",
    "decode_queued", "first_decode_step", "decoding", "returned", "lost", "finished",
]  # fmt: skip
"""`queued` in the gateway; `sent` from the placement to the worker; `prefill_queued` and `prefilling` up to the
segment's first token, or `decode_queued` and `first_decode_step` where the KV of all before it was computed elsewhere;
`kv_transfer` from the store; `decoding` from the segment's first token to its last. `handing_over` until the next
worker has it, `returned` until the gateway has it to place it again, `lost` until that is noticed, `finished` from the
last token until the gateway has it.
"""

MOST = 96
"""Marks kept of one request: some ten attempts. Beyond it, phases in the middle go into the ones before them."""


class Place(NamedTuple):
    """A process, and for a worker the attempt and the epoch under which it has the request."""

    where: str
    attempt: int = 0
    epoch: int | None = None


class Phase(NamedTuple):
    """A stretch, in seconds. `end_s` is of the next phase's clock: that of another process when `where` changes."""

    name: Name
    start_s: float
    end_s: float
    place: Place


class _Mark(NamedTuple):
    name: Name
    at_s: float
    place: Place


@dataclass(slots=True)
class Timeline:
    """The marks of one request: each is the begin of a phase, and the end of the one before."""

    ended_s: float | None = None
    accepted_s: float | None = None
    _marks: list[_Mark] = field(default_factory=list)
    _known: set[tuple[str, str, float]] = field(default_factory=set)
    _first: Phase | None = None

    def begin(self, name: Name, at_s: float, place: Place) -> None:
        """The phase before it ends, this one begins."""
        self._marks.append(_Mark(name, at_s, place))
        if len(self._marks) > MOST:
            del self._marks[MOST // 2]

    def placed(self, at_s: float, place: Place) -> None:
        """Work leaves the gateway; what was known of earlier attempts' segments no longer counts."""
        self._known.clear()
        self.accepted_s = None
        self.begin("sent", at_s, place)

    def ran(self, place: Place, timing: Timing, times_s: Sequence[float], computes: bool, goes_on: bool) -> None:
        """What a run tells of its segment; what was told before is not taken twice.

        `times_s` are those of its tokens. `computes`: the input's KV is to be computed here, not only fetched.
        `goes_on`: when it is over, the worker itself looks for the next.
        """
        if timing.received_s is not None and self._news("began", place.where, timing.received_s):
            self._began(place, timing, timing.received_s, computes)
            if times_s:
                self.begin("decoding", times_s[0], place)
        if timing.done_s is not None and self._news("done", place.where, timing.done_s):
            self.begin("handing_over" if goes_on else "returned", times_s[-1] if times_s else timing.done_s, place)
        if timing.accepted_s is not None:
            self.accepted_s = timing.accepted_s

    def _began(self, place: Place, timing: Timing, received_s: float, computes: bool) -> None:
        queued: Name = "prefill_queued" if computes else "decode_queued"
        self.begin(queued, received_s, place)
        if timing.fetched_s is not None:
            self.begin("kv_transfer", received_s if timing.fetch_s is None else timing.fetch_s, place)
            self.begin(queued, timing.fetched_s, place)
        if timing.scheduled_s is not None:
            self.begin("prefilling" if computes else "first_decode_step", timing.scheduled_s, place)

    def _news(self, what: str, where: str, at_s: float) -> bool:
        known = (what, where, at_s) in self._known
        self._known.add((what, where, at_s))
        return not known

    def first_token(self, made_s: float, came_s: float, place: Place) -> None:
        """The request's first token: the worker's stamp, and when it came here."""
        self._first = Phase("first_token_sent", made_s, came_s, place)

    @property
    def first_came_s(self) -> float | None:
        """When the request's first token came to the gateway."""
        return None if self._first is None else self._first.end_s

    def lost(self, last_token_s: float, place: Place) -> None:
        """Nothing more was heard of the attempt, since its last token or the last mark of all."""
        known_s = max(last_token_s, self.accepted_s or 0.0)
        if self._marks and self._marks[-1].name != "sent":
            self.begin("lost", max(known_s, self._marks[-1].at_s), place)

    def close(self, now_s: float) -> None:
        """The request is over."""
        self.ended_s = now_s
        self._known.clear()

    def phases(self, now_s: float) -> list[Phase]:
        """All of them in order, up to now or the end; those of no length are left out."""
        ends = [mark.at_s for mark in self._marks[1:]]
        ends.append(now_s if self.ended_s is None else self.ended_s)
        found: list[Phase] = []
        first = self._first
        for mark, end_s in zip(self._marks, ends, strict=False):
            if first is not None and mark.name == "decoding":  # begins with the first token of all
                found.append(first)
                first = None
            if end_s != mark.at_s:
                found.append(Phase(mark.name, mark.at_s, end_s, mark.place))
        return found
