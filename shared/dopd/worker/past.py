"""What a worker remembers for a while: ended work, in case its tokens got lost, and void attempts. Pure.

Both are kept in the order of their times, so that only what has expired is looked at: in an `OrderedDict`, because a
plain one gets slow when it is used up from its front.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from dopd.worker.segment import Held
from dopd_proto.request import RunEnd


class Ended(NamedTuple):
    """Work that has ended, and how."""

    held: Held
    end: RunEnd
    expires_s: float


class Void(NamedTuple):
    """Attempts up to this one were aborted; their work may still arrive."""

    attempt: int
    expires_s: float


@dataclass(slots=True)
class Past:
    """Ended work by job, void attempts by request."""

    keep_s: float
    ended: OrderedDict[str, Ended] = field(default_factory=OrderedDict)
    void: OrderedDict[str, Void] = field(default_factory=OrderedDict)

    def close(self, held: Held, end: RunEnd, now_s: float) -> None:
        """Work has ended."""
        self.ended[held.job_id] = Ended(held, end, now_s + self.keep_s)

    def abort(self, request_id: str, attempt: int, now_s: float) -> None:
        """This attempt and those before it are void."""
        before = self.void.pop(request_id, None)
        self.void[request_id] = Void(max(attempt, before.attempt if before else 0), now_s + self.keep_s)

    def is_void(self, request_id: str, attempt: int) -> bool:
        """Whether work of this attempt comes too late."""
        void = self.void.get(request_id)
        return void is not None and attempt <= void.attempt

    def forget(self, now_s: float) -> None:
        """What has expired."""
        while self.ended and next(iter(self.ended.values())).expires_s < now_s:
            self.ended.popitem(last=False)
        while self.void and next(iter(self.void.values())).expires_s < now_s:
            self.void.popitem(last=False)
