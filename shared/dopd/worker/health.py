"""Whether work is possible: judged by the engine's step counter. Pure.

A heartbeat must mean that the engine moves, not only that a process runs (architecture, section 6).
"""

from dataclasses import dataclass
from typing import Literal

from dopd.engine.contract import EngineLoad

Health = Literal["good", "slow", "failed"]


@dataclass(slots=True)
class Pulse:
    """Remembers when the engine last moved. Slow: no credit. Failed: not able to work until it moves again."""

    slow_s: float
    stall_s: float
    steps: int = -1
    moved_s: float = 0.0

    def feel(self, load: EngineLoad, now_s: float) -> Health:
        """The engine's health now; an engine with nothing to do is in good health."""
        if load.steps != self.steps or not (load.running or load.waiting):
            self.steps, self.moved_s = load.steps, now_s
        if not load.alive or now_s - self.moved_s > self.stall_s:
            return "failed"
        return "slow" if now_s - self.moved_s > self.slow_s else "good"
