"""How long answers will be, from those that have ended: nobody knows it of a single one. Pure.

Consumes the lengths of ended answers; produces the mean and spread of what a request has still to come.
"""

from dataclasses import dataclass
from math import sqrt

MEMORY = 100
"""So many of the last answers count for most of it."""


@dataclass(slots=True)
class Lengths:
    """Mean and variance of output tokens, exponentially weighted; of the first answers all count alike."""

    ended: int = 0
    mean_tokens: float = 0.0
    variance: float = 0.0

    def saw(self, osl_tokens: int) -> None:
        """An answer has come to its own end."""
        self.ended += 1
        share = 1 / min(self.ended, MEMORY)
        off = osl_tokens - self.mean_tokens
        self.mean_tokens += share * off
        self.variance = (1 - share) * (self.variance + share * off * off)

    def to_come(self, sent_tokens: int, most_tokens: int) -> tuple[float, float]:
        """Mean and standard deviation of the tokens after `sent_tokens`. Before an answer has ended: the limit, and 0.

        The limit is no part of it otherwise: clients set it generously.
        """
        if not self.ended:
            return float(most_tokens), 0.0
        return max(1.0, self.mean_tokens - sent_tokens), sqrt(self.variance)
