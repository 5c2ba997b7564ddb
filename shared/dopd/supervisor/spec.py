"""What one process is: its command, when it counts as ready, when it is stopped, how often it may fail.

Consumes nothing; produces `Spec`, which `stack.py` fills in and `processes.Child` carries out.
"""

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from dopd.errors import DopdError

CANNOT_START = 2  # exit code of a service that was configured wrongly: trying again changes nothing
STARTS_TRIED = 3
BACKOFF_FIRST_S, BACKOFF_LIMIT_S = 0.5, 30.0
STEADY_S = 30.0  # a process that ran this long has recovered: the backoff begins anew

Probe = Callable[[], Awaitable[bool]]


class StartFailed(DopdError):
    """A process did not become ready."""


@dataclass(frozen=True)
class Spec:
    """How to run one process. `ready` is asked again and again until it says so.

    Lower `stop_rank` is stopped earlier; equal ones together. `detail` is shown when it is ready.
    `before` is called ahead of every start, to remove what a killed predecessor left.
    """

    name: str
    argv: tuple[str, ...]
    ready: Probe
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 30.0
    stop_rank: int = 1
    grace_s: float = 5.0
    detail: str = ""
    before: Callable[[], None] = lambda: None


def backoff_s(crashes: int) -> float:
    """How long to wait before the next start: doubling, bounded."""
    return min(BACKOFF_FIRST_S * 2.0 ** (crashes - 1), BACKOFF_LIMIT_S)


def ended_how(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
