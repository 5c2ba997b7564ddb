"""`Runtime`: clock, seeded randomness, ids and off-loop compute, handed to everything that needs one of them."""

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

T = TypeVar("T")


class Runtime(Protocol):
    """What a service may know of the world."""

    def now(self) -> float:
        """Seconds; in real mode since the epoch, comparable between processes of one machine."""

    def loop_time(self, when_s: float) -> float:
        """The running loop's `time()` at clock reading `when_s`, for `call_at`."""

    def rng(self, name: str) -> random.Random:
        """A generator of its own for each name, from the run's seed."""

    def new_id(self, prefix: str) -> str:
        """A new id, unique in the run."""

    async def compute(self, work: Callable[[], T]) -> T:
        """Run something long outside of the event loop."""


OFFSET_VARIABLE = "DOPD_CLOCK_OFFSET_S"
"""Whoever starts processes hands them its offset: those that are started after a step of the wall clock then agree with
those that were started before."""


def offset_s(env: Mapping[str, str] = os.environ) -> float:
    """From the monotonic clock to seconds since the epoch, as handed down, else by the wall clock."""
    given = env.get(OFFSET_VARIABLE)
    return float(given) if given else time.time() - time.monotonic()


class RealRuntime:
    """The machine's clock and chance. `seed` makes the generators repeatable, not the ids."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        # One offset at start, then the monotonic clock: a step of the wall clock must not look like a dead worker.
        self._offset_s = offset_s()

    def now(self) -> float:
        return time.monotonic() + self._offset_s

    def loop_time(self, when_s: float) -> float:
        return asyncio.get_running_loop().time() + when_s - self.now()

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}/{name}")

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{uuid.uuid4().hex[:12]}"

    async def compute(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)
