"""Service level objectives and the one definition of what meets them (architecture, section 9)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets of one request, in seconds."""

    ttft_s: float = 2.0
    tpot_s: float = 0.08


def tpot_s(first_s: float, last_s: float, osl_tokens: int) -> float:
    """Time per output token after the first: (last - first) / (OSL - 1); 0 for OSL 1, which meets any target."""
    return 0.0 if osl_tokens <= 1 else (last_s - first_s) / (osl_tokens - 1)


def attains(slo: Slo, intended_s: float, token_times_s: Sequence[float], osl_tokens: int) -> bool:
    """Whether a request counts for goodput: every token delivered, TTFT from the intended send and TPOT in time."""
    if not token_times_s or len(token_times_s) < osl_tokens:
        return False
    first, last = token_times_s[0], token_times_s[-1]
    return first - intended_s <= slo.ttft_s and tpot_s(first, last, osl_tokens) <= slo.tpot_s
