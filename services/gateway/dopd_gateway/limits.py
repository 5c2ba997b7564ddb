"""The range of every number in a request: what the check goes by, and what the OpenAPI document says. Pure.

Consumes: a field's value. Produces: whether it keeps to its range, the range in words, and as JSON Schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

MAX_CHOICES = 128
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 1000
"""Of each. With each token the end of the text is held against all starts of a stop string."""
MAX_MESSAGES = 10_000
MAX_LOGPROBS = 20
MAX_BIASES = 1024
LONGEST_S = 7 * 86_400
MAX_SCHEMA_CHARACTERS = 65_536
INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` (`above`: not itself) to `high`; None is no bound. `words` replaces what would be said of it."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    words: str = ""

    def keeps(self, value: float) -> bool:
        """Whether the value is a finite number inside."""
        low = self.low is None or (value > self.low if self.above else value >= self.low)
        return isfinite(value) and low and (self.high is None or value <= self.high)

    def text(self) -> str:
        """In words, to follow "must be"."""
        if self.words:
            return self.words
        low = f"{'above' if self.above else 'at least'} {self.low}" if self.low is not None else ""
        high = f"at most {self.high}" if self.high is not None else ""
        return " and ".join(part for part in (low, high) if part) or "a number"

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        low = {"exclusiveMinimum" if self.above else "minimum": self.low} if self.low is not None else {}
        return {**low, **({"maximum": self.high} if self.high is not None else {})}


RANGES: Mapping[str, Range] = {
    "max_tokens": Range(1),
    "min_tokens": Range(0),
    "temperature": Range(0),
    "top_p": Range(0, 1, above=True),
    "top_k": Range(-1, words="at least 1, or 0 or -1 for all tokens"),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, above=True),
    "logprobs": Range(0, MAX_LOGPROBS),
    "n": Range(1, MAX_CHOICES),
    "seed": Range(*INT64, words="a number of 64 bits"),
    "priority": Range(*INT64, words="a number of 64 bits"),
    "timeout_s": Range(0, LONGEST_S, above=True),
    "slo_ttft_s": Range(0, above=True),
    "slo_tpot_s": Range(0, above=True),
}
"""By the field's name in `Generate` and `Chat`."""
