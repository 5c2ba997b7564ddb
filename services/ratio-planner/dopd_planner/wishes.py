"""Role changes under way: wished, then accepting, then drained, or void. It knows what has become of each.

Consumes wishes, worker states and the time; produces the roles that are coming, and `ChangeOutcome`s for the ledger.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dopd.obs.log import get_logger
from dopd.obs.telemetry import Begun, Span, Tracing, begin
from dopd_planner import core
from dopd_planner.core import Wish
from dopd_proto.base import Role
from dopd_proto.control import ChangeOutcome
from dopd_proto.telemetry import WorkerState


class Wishes:
    """At most one wish per worker; a newer one takes its place."""

    def __init__(self, planner_id: str, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._open: dict[str, Wish] = {}
        self._spans: dict[str, Span] = {}
        self._draining: dict[str, Wish] = {}
        self.outcomes: list[ChangeOutcome] = []
        """Not in the ledger yet."""
        self._log = get_logger().bind(planner_id=planner_id)

    def __iter__(self) -> Iterator[Wish]:
        """Those that are not read back yet."""
        return iter(self._open.values())

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._open

    def leaving(self) -> dict[str, Role]:
        """The coming role of each worker that is to change."""
        return {worker_id: wish.role for worker_id, wish in self._open.items()}

    def clear(self) -> None:
        """Another has led meanwhile. What is not in the ledger yet still goes there."""
        for wish in self._open.values():
            self._spans.pop(wish.worker_id).end(wish.sent_s, "another planner led")
        self._open.clear()
        self._draining.clear()

    def add(self, wish: Wish, now_s: float) -> Wish:
        """To be commanded until read back; the wish with its own span, which ends then."""
        about = {"dopd.worker_id": wish.worker_id, "dopd.role": wish.role, "dopd.epoch": wish.epoch}
        if wish.worker_id in self._open:
            self._spans.pop(wish.worker_id).end(now_s, "superseded")
        span = begin(self._tracing, Begun("command", now_s, about), wish.traceparent)
        wish = replace(wish, traceparent=span.traceparent)
        self._open[wish.worker_id], self._spans[wish.worker_id] = wish, span
        return wish

    def saw(self, state: WorkerState) -> None:
        """A worker's word: it may show that a wish came true, and that the old work is gone."""
        wish = self._open.get(state.worker_id)
        if wish is not None and core.accepting(wish, state):
            del self._open[state.worker_id]
            self._spans.pop(state.worker_id).end(state.accepting_at_s)
            self._accepting(wish, state)
        wish = self._draining.get(state.worker_id)
        if wish is not None and (state.drained_at_s is not None or state.epoch > wish.epoch):
            del self._draining[state.worker_id]
            if state.drained_at_s is not None:
                self._outcome(wish, "drained", state.drained_at_s - wish.sent_s)

    def expire(self, states: Mapping[str, WorkerState], now_s: float) -> None:
        """Give up what cannot come true any more."""
        for worker_id, wish in list(self._open.items()):
            reason = core.void(wish, states.get(worker_id), now_s)
            if reason:
                del self._open[worker_id]
                self._spans.pop(worker_id).end(now_s, reason)
                self._outcome(wish, reason)

    def is_done(self, wish: Wish, state: WorkerState | None, now_s: float) -> bool:
        """Whether nothing is left to command of an earlier leader's wish; says what came of it."""
        reason = core.void(wish, state, now_s)
        if state is not None and core.accepting(wish, state):
            self._accepting(wish, state)
        elif reason:
            self._outcome(wish, reason)
        else:
            return False
        return True

    def _accepting(self, wish: Wish, state: WorkerState) -> None:
        self._draining[wish.worker_id] = wish
        self._outcome(wish, "accepting", state.accepting_at_s - wish.sent_s)

    def _outcome(self, wish: Wish, outcome: str, after_s: float | None = None) -> None:
        self._log.info("role_change_" + outcome, worker_id=wish.worker_id, role=wish.role, after_s=after_s)
        self.outcomes.append(
            ChangeOutcome(decision_id=wish.decision_id, worker_id=wish.worker_id, outcome=outcome, after_s=after_s)
        )
