"""Virtual time: an asyncio loop whose clock jumps to the next timer instead of waiting for it.

Timers with equal deadlines fire in the order they were set (stock asyncio leaves that to the heap), so a run is a
function of its seed alone. When every task is blocked and no timer is left, the loop raises `Deadlock`.
"""

import asyncio
import heapq
import itertools
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dopd.errors import DopdError

T = TypeVar("T")


class Deadlock(DopdError):
    """All tasks wait and nothing will ever wake them."""


class _Timer(asyncio.TimerHandle):
    """A timer that is ordered by (deadline, number)."""

    __slots__ = ("_number",)

    def __init__(self, number: int, when: float, *rest: Any) -> None:
        super().__init__(when, *rest)
        self._number = number

    def __lt__(self, other: Any) -> bool:
        return (self._when, self._number) < (other._when, other._number)  # type: ignore[attr-defined]


class _JumpSelector(selectors.SelectSelector):
    """Waits for nothing: moves the loop's clock by the time-out instead."""

    loop: "VirtualTimeLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Deadlock("every task is blocked and no timer is set")
        if timeout > 0:
            self.loop.jump()
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which time passes only while everybody waits."""

    def __init__(self) -> None:
        selector = _JumpSelector()
        super().__init__(selector)
        selector.loop = self
        self._set(0.0)
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._virtual_s

    def jump(self) -> None:
        """Move the clock to the next timer."""
        self._set(self._scheduled[0].when())  # type: ignore[attr-defined]

    def _set(self, now_s: float) -> None:
        self._virtual_s = now_s
        # asyncio fires a timer when `when < time + resolution`: the least that lets one fire at its very time.
        self._clock_resolution = math.ulp(now_s)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        timer = _Timer(next(self._numbers), when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        return timer


class VirtualRuntime:
    """Clock of the virtual loop; ids and chance from the seed; compute runs in place and takes no time."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._ids: dict[str, int] = {}

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def loop_time(self, when_s: float) -> float:
        return when_s

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}/{name}")

    def new_id(self, prefix: str) -> str:
        self._ids[prefix] = self._ids.get(prefix, 0) + 1
        return f"{prefix}-{self._ids[prefix]}"

    async def compute(self, work: Callable[[], T]) -> T:
        return work()


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time. Raises Deadlock instead of hanging."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
