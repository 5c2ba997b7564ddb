"""A role change as spans: until new work of the role is taken, then until the old is gone.

Consumes commands and the role's state after each step; produces spans that are parts of the command's.
"""

from dopd.obs.telemetry import Begun, Span, Tracing, begin
from dopd.worker.role import RoleState
from dopd_proto.control import RoleChange


class Turn:
    """The newest change. One that another takes over ends as such."""

    def __init__(self, worker_id: str, tracing: Tracing | None) -> None:
        self._about, self._tracing = {"dopd.worker_id": worker_id}, tracing
        self._cause = ""
        self._accepting: Span | None = None
        self._draining: Span | None = None

    def commanded(self, command: RoleChange, now_s: float) -> None:
        """The worker has obeyed; its state says how far it is."""
        for span in (self._accepting, self._draining):
            if span is not None:
                span.end(now_s, "superseded")
        about = self._about | {"dopd.role": command.role, "dopd.drain": command.drain}
        self._cause, self._draining = command.traceparent, None
        self._accepting = begin(self._tracing, Begun("accepting", now_s, about), self._cause)

    def saw(self, state: RoleState) -> None:
        """The state after a step."""
        if self._accepting is not None and state.next_role is None:
            self._accepting.end(state.accepting_at_s)
            self._accepting = None
            self._draining = begin(self._tracing, Begun("drained", state.accepting_at_s, self._about), self._cause)
        if self._draining is not None and state.drained_at_s is not None:
            self._draining.end(state.drained_at_s)
            self._draining = None
