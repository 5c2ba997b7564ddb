"""Whether a process does its work: the answer to `GET /ready` on its operator port, for health checks.

Consumes the bus's connection and a condition of the service; produces the page, which is refused until both hold.
"""

from collections.abc import Callable

from dopd.bus import Bus
from dopd.obs.operator_http import NotYet


class Readiness:
    """One process's. Not ready before `when` was called: until then the service is starting."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lacks: Callable[[], str] | None = None

    def when(self, lacks: Callable[[], str] = lambda: "") -> None:
        """From now on ready whenever the broker is there and `lacks` says nothing; else it says what is missing."""
        self._lacks = lacks

    def page(self) -> bytes:
        """Raises NotYet, which says what is missing."""
        if self._lacks is None:
            raise NotYet("starting")
        missing = "" if self._bus.connected else "the broker is out of reach"
        if missing := missing or self._lacks():
            raise NotYet(missing)
        return b"ready\n"
