"""What a worker has done since its start, in plain numbers. Pure.

Consumes segments as they begin, end and are refused; produces the counters of its metrics. Nothing per token.
"""

from collections import Counter
from dataclasses import dataclass, field

from dopd.engine.contract import Cached
from dopd.worker.segment import Held
from dopd_proto.request import RunEnd


@dataclass(slots=True)
class Tally:
    """`made_tokens` are those of segments that ended; `busy_since_s` is set while work is in hand."""

    ended: Counter[RunEnd] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    input_tokens: Counter[str] = field(default_factory=lambda: Counter(local=0, store=0, far=0, computed=0))
    role_changes: int = 0
    made_tokens: int = 0
    busy_s: float = 0.0
    busy_since_s: float | None = None

    def began(self, now_s: float) -> None:
        """A segment was taken."""
        if self.busy_since_s is None:
            self.busy_since_s = now_s

    def looked(self, input_tokens: int, cached: Cached, *, far: bool) -> None:
        """The engine has found out how much of a segment's input need not be computed; `far`: from another domain."""
        self.input_tokens["local"] += cached.local_tokens
        self.input_tokens["far" if far else "store"] += cached.store_tokens
        self.input_tokens["computed"] += input_tokens - cached.local_tokens - cached.store_tokens

    def closed(self, held: Held, end: RunEnd) -> None:
        """It ended."""
        self.ended[end] += 1
        self.made_tokens += len(held.made)

    def idle(self, now_s: float) -> None:
        """It was the last one in hand."""
        self.busy_s, self.busy_since_s = self.busy_until_s(now_s), None

    def busy_until_s(self, now_s: float) -> float:
        """Seconds with work in hand, up to now."""
        return self.busy_s + (0.0 if self.busy_since_s is None else now_s - self.busy_since_s)
