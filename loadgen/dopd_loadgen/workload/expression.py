"""Arrivals and lengths in words, for a command line: `lognormal:mean=1200,p50=800`, `mmpp:rates=0/9,stays=60/20`.

Consumes the text and the flag it came with; produces `Arrivals` or `Lengths`, or a LoadError that names the flag.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

from dopd.errors import LoadError
from dopd_loadgen.workload import arrivals, lengths
from dopd_loadgen.workload.arrivals import Arrivals
from dopd_loadgen.workload.lengths import TOKENS_LIMIT, Lengths


def _lognormal(
    mean: float = 0, p50: float = 0, mu: float = -1, sigma: float = -1, max: float = TOKENS_LIMIT
) -> Lengths:
    if (mean > 0 and p50 > 0) == (mu >= 0 and sigma >= 0):
        raise LoadError("lognormal", "needs mean and p50, or mu and sigma")
    return lengths.lognormal_of(mean, p50, max) if mean > 0 else lengths.lognormal(mu, sigma, max)


LENGTHS: Mapping[str, Callable[..., Lengths]] = {
    "fixed": lambda tokens: lengths.fixed(_whole("tokens", tokens)),
    "uniform": lambda low, high: lengths.uniform(_whole("low", low), _whole("high", high)),
    "lognormal": _lognormal,
    "bimodal": lengths.bimodal,
    "quantiles": lengths.quantiles,
}
ARRIVALS: Mapping[str, Callable[..., Arrivals]] = {
    "poisson": lambda rate: arrivals.steady(rate_rps=rate),
    "gamma": lambda rate, burstiness: arrivals.steady(rate_rps=rate, burstiness=burstiness),
    "mmpp": lambda rates, stays, burstiness=1.0: arrivals.varying(arrivals.modulated(rates, stays), burstiness),
    "wandering": lambda rate, cv, memory, burstiness=1.0: arrivals.varying(
        arrivals.wandering(rate, cv, memory), burstiness
    ),
    "diurnal": lambda rate, amplitude, period, burstiness=1.0: arrivals.varying(
        arrivals.diurnal(rate, amplitude, period), burstiness
    ),
    "step": lambda rates, every, burstiness=1.0: arrivals.varying(arrivals.steps(rates, every), burstiness),
    "ramp": lambda start, end, over, burstiness=1.0: arrivals.varying(arrivals.ramp(start, end, over), burstiness),
}
Made = TypeVar("Made")
_LISTS = frozenset({"rates", "stays", "shares", "tokens"})


def lengths_of(flag: str, text: str) -> Lengths:
    """A distribution of lengths; a bare number is a fixed length. Raises LoadError."""
    text = text.strip()
    return _made(flag, f"fixed:tokens={text}" if text.isdecimal() else text, LENGTHS)


def arrivals_of(flag: str, text: str) -> Arrivals:
    """A process of arrivals; rates are in requests per second, times in seconds. Raises LoadError."""
    return _made(flag, text.strip(), ARRIVALS)


def _made(flag: str, text: str, kinds: Mapping[str, Callable[..., Made]]) -> Made:
    kind, _, rest = text.partition(":")
    if kind not in kinds:
        raise LoadError(flag, f"{kind!r} is none of {', '.join(kinds)}")
    values = dict(_value(flag, part, kind) for part in rest.split(",") if part.strip())
    known = inspect.signature(kinds[kind]).parameters
    wanted = [name for name, known_as in known.items() if known_as.default is inspect.Parameter.empty]
    if set(values) - set(known) or set(wanted) - set(values):
        raise LoadError(flag, f"{kind} takes {', '.join(known)} (needs {', '.join(wanted) or 'none'}), not {text!r}")
    try:
        return kinds[kind](**values)
    except LoadError as error:
        raise LoadError(f"{flag} {text}", str(error)) from error


def _value(flag: str, part: str, kind: str) -> tuple[str, float | list[float]]:
    name, _, text = (piece.strip() for piece in part.partition("="))
    try:
        numbers = [float(number) for number in text.split("/")]
    except ValueError as error:
        raise LoadError(flag, f"{part.strip()!r} is not name=number or, in a list, name=number/number") from error
    is_list = name in _LISTS and kind != "fixed"
    if len(numbers) > 1 and not is_list:
        raise LoadError(flag, f"{name} of {kind} is one number, not {text!r}")
    return name, numbers if is_list else numbers[0]


def _whole(name: str, value: float) -> int:
    if value != value or value in (float("inf"), -float("inf")) or value != int(value):
        raise LoadError(name, f"{value} is not a whole number")
    return int(value)
