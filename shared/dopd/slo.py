"""Service level objectives and the one definition of what meets them (architecture, section 9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets of one request, in seconds."""

    ttft_s: float = 2.0
    tpot_s: float = 0.08
    e2e_s: float = float("inf")


class Met(NamedTuple):
    """Which targets a request met; all of them is what counts."""

    ttft: bool
    tpot: bool
    e2e: bool


def tpot_s(first_s: float, last_s: float, osl_tokens: int) -> float:
    """Time per output token after the first: (last - first) / (OSL - 1); 0 for OSL 1, which meets any target."""
    return 0.0 if osl_tokens <= 1 else (last_s - first_s) / (osl_tokens - 1)


def met(slo: Slo, intended_s: float, first_s: float, last_s: float, osl_tokens: int) -> Met:
    """The targets that a request met which delivered every token: first at `first_s`, last at `last_s`."""
    return Met(
        first_s - intended_s <= slo.ttft_s,
        tpot_s(first_s, last_s, osl_tokens) <= slo.tpot_s,
        last_s - intended_s <= slo.e2e_s,
    )


def attains(slo: Slo, intended_s: float, token_times_s: Sequence[float], osl_tokens: int) -> bool:
    """Whether a request counts for goodput: every token delivered, TTFT from the intended send and TPOT in time."""
    if not token_times_s or len(token_times_s) < osl_tokens:
        return False
    return all(met(slo, intended_s, token_times_s[0], token_times_s[-1], osl_tokens))
