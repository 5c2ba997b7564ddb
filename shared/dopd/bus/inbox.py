"""One inbox per connection, shared by all requests and streams: the last token of the subject names the asker.

Consumes: raw answers on `<prefix>.*`. Produces: calls of the asker's handler. (A subscription per request costs more
than twice the time of a short exchange.)
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dopd.bus.common import FaultBox
from dopd_proto.base import Message
from dopd_proto.codec import DecodeError, decode


@dataclass(frozen=True, slots=True)
class Asker:
    """Who waits for answers: from which subject, of which types, where they go, and whom to tell that nobody listens,
    or why there will be no answer."""

    asked: str
    types: tuple[type[Any], ...]
    on_answer: Callable[[Any], None]
    on_nobody: Callable[[], None]
    on_garbage: Callable[[str], None]
    on_refused: Callable[[str], None]


class Inbox:
    """The askers of one connection by the token of their reply subject."""

    def __init__(self, prefix: str, faults: FaultBox) -> None:
        self.prefix, self._faults = prefix, faults
        self._askers: dict[str, Asker] = {}
        self._marks: dict[str, Callable[[], None]] = {}
        self._numbers = itertools.count(1)

    def open(self, asker: Asker) -> str:
        """The reply subject of a new asker."""
        reply_to = f"{self.prefix}.{next(self._numbers)}"
        self._askers[reply_to] = asker
        return reply_to

    def close(self, reply_to: str) -> None:
        self._askers.pop(reply_to, None)

    def open_mark(self, on_mark: Callable[[], None]) -> str:
        """A subject to send to ourselves: what comes back has seen the broker after all that was sent before."""
        subject = f"{self.prefix}.m{next(self._numbers)}"
        self._marks[subject] = on_mark
        return subject

    def close_mark(self, subject: str) -> None:
        self._marks.pop(subject, None)

    def release_marks(self) -> None:
        """The connection was lost: what was sent to ourselves may never come back."""
        for on_mark in list(self._marks.values()):
            on_mark()

    def refuse(self, asked: str, detail: str) -> None:
        """The broker does not let us ask there. `asked` is in lower case."""
        for asker in [each for each in self._askers.values() if each.asked.lower() == asked]:
            asker.on_refused(detail)

    def is_wanted(self, reply_to: str) -> bool:
        """False for one of our own subjects whose asker has gone."""
        return not reply_to.startswith(self.prefix) or reply_to in self._askers

    def take(self, subject: str, payload: bytes, nobody: bool) -> None:
        """An answer came, or the broker's word that nobody listens. Late ones are nobody's."""
        asker = self._askers.get(subject)
        if asker is not None:
            self._pass_on(asker, subject, payload, nobody)
        elif subject in self._marks:
            self._marks[subject]()

    def _pass_on(self, asker: Asker, subject: str, payload: bytes, nobody: bool) -> None:
        try:
            if nobody:
                asker.on_nobody()
                return
            answer: Message = decode(payload, asker.types)
        except DecodeError as error:
            self._faults.report("decode", subject, str(error))
            asker.on_garbage(str(error))
            return
        try:
            asker.on_answer(answer)
        except Exception as error:
            self._faults.report("handler", subject, f"{type(error).__name__}: {error}", error)
