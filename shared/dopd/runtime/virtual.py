"""Virtual time: an asyncio loop whose clock jumps to the next timer instead of waiting for it.

Timers with equal deadlines fire in the order they were set (stock asyncio leaves that to the heap), so a run is a
function of its seed alone. When every task is blocked and no timer is left, the loop raises `Deadlock`.
"""

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dopd.errors import DopdError

T = TypeVar("T")


class Deadlock(DopdError):
    """All tasks wait and nothing will ever wake them."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which time passes only while everybody waits. It looks at no file, socket or other thread."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _run_once(self) -> None:
        """One turn in place of asyncio's: timers that are due line up behind what is ready, then all of it runs."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        timers = self._timers
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Deadlock("every task is blocked and no timer is set")
            self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()


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
    outcome: list[T] = []

    async def keep() -> None:
        # Not as the task's own result: at the end the Runner prints the task, which takes long for a long run.
        outcome.append(await main)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(keep())
    return outcome[0]
