"""The workers' roles over time, one lane each. Pure.

Consumes the states that the gateway knows, every now and then; produces the lanes, those of lost workers too, until
they are forgotten. Bounded in time, in changes of a lane and in lanes.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dopd.top.sight import Seen, Sight
from dopd_gateway.live import KEEP_S
from dopd_proto.base import Role
from dopd_proto.telemetry import Phase, WorkerState

MOST_LANES, MOST_CHANGES = 128, 200

Shown = Phase | Literal["overlap", "stopped", "lost"]
"""`overlap`: it serves, and work of its old role is left. `stopped`: it said that it would. `lost`: it fell silent."""
Why = Literal["", "flip", "restart", "back"]


class Stretch(NamedTuple):
    """From `at_s` on until the next one begins. `why` is what made it begin, where that deserves a mark."""

    at_s: float
    role: Role
    phase: Shown
    why: Why = ""


@dataclass(slots=True)
class Lane:
    """One worker. `state` is its last word, and `gone` whether it is silent since."""

    state: WorkerState
    heard_s: float
    gone: bool = False
    steps_per_s: float | None = None
    stretches: deque[Stretch] = field(default_factory=lambda: deque(maxlen=MOST_CHANGES))

    def follow(self, seen: Seen) -> None:
        """Take in its newest word."""
        before, state = self.state, seen.state
        self.state, self.heard_s, self.steps_per_s = state, seen.heard_s, seen.steps_per_s
        last = self.stretches[-1] if self.stretches else None
        phase = shown(state)
        why: Why = ""
        if last is None:
            pass
        elif state.incarnation != before.incarnation:
            why = "restart"
        elif self.gone:
            why = "back"
        elif last.role != state.role:
            why = "flip"
        elif last.phase == phase:
            return
        self.gone = False
        at_s = seen.heard_s
        if why == "flip" and last is not None and last.at_s <= state.accepting_at_s <= at_s:
            at_s = state.accepting_at_s  # else its clock is another one
        self.stretches.append(Stretch(at_s, state.role, phase, why))

    def leave(self) -> None:
        """It is not heard any more."""
        last = self.stretches[-1]
        self.gone, self.steps_per_s = True, None
        self.stretches.append(Stretch(self.heard_s, last.role, "stopped" if self.state.phase == "stopping" else "lost"))

    def forget(self, before_s: float) -> None:
        """All that was over by then."""
        while len(self.stretches) > 1 and self.stretches[1].at_s <= before_s:
            self.stretches.popleft()


@dataclass(slots=True)
class Lanes:
    """All workers. `left_out` have no lane, because there are too many."""

    by_worker: dict[str, Lane] = field(default_factory=dict)
    left_out: int = 0

    def look(self, known: Mapping[str, tuple[WorkerState, float]], sight: Sight, now_s: float) -> None:
        """Take in the workers that the gateway knows, with the times at which each was heard last."""
        for worker_id, (state, heard_s) in known.items():
            before = sight.workers.get(worker_id)
            if before is None or heard_s > before.heard_s:
                sight.worker(state, heard_s)
        for worker_id in sight.workers.keys() - known.keys():
            del sight.workers[worker_id]
        for worker_id in self.by_worker.keys() - known.keys():
            if not self.by_worker[worker_id].gone:
                self.by_worker[worker_id].leave()
        self._forget(now_s - KEEP_S)
        self.left_out = 0
        for worker_id, seen in sight.workers.items():
            lane = self._lane(worker_id, seen)
            if lane is None:
                self.left_out += 1
            elif lane.heard_s < seen.heard_s or not lane.stretches:
                lane.follow(seen)

    def _lane(self, worker_id: str, seen: Seen) -> Lane | None:
        """Its lane; a new one takes, if it must, the place of the worker that has been gone for longest."""
        if worker_id not in self.by_worker:
            if len(self.by_worker) >= MOST_LANES:
                gone = [(lane.heard_s, name) for name, lane in self.by_worker.items() if lane.gone]
                if not gone:
                    return None
                del self.by_worker[min(gone)[1]]
            self.by_worker[worker_id] = Lane(seen.state, seen.heard_s)
        return self.by_worker[worker_id]

    def _forget(self, before_s: float) -> None:
        for worker_id, lane in list(self.by_worker.items()):
            lane.forget(before_s)
            if lane.gone and lane.heard_s < before_s:
                del self.by_worker[worker_id]


def shown(state: WorkerState) -> Shown:
    """The phase of a state as the page tells it."""
    return "overlap" if state.phase == "serving" and state.drained_at_s is None else state.phase
