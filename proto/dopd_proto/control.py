"""Commands of the ratio-planner to workers, what it decided and why, and people's wishes to the ratio-planner."""

from typing import Literal

import msgspec

from dopd_proto.base import DrainMode, Message, Role
from dopd_proto.telemetry import Forecast


class RoleChange(Message):
    """Take this role. `epoch` is (lease term << 32 | sequence): a worker obeys only one higher than its own.

    Repeated until the worker's own state shows it; repeating does nothing. Void after `deadline_s`. `traceparent` is
    the command's span.
    """

    worker_id: str
    incarnation: str
    role: Role
    epoch: int
    decision_id: str
    drain: DrainMode
    deadline_s: float
    sent_s: float
    traceparent: str = ""


class RolesRequest(Message, forbid_unknown_fields=True):
    """A person's wish. `set` pins the role and waits for the read-back; `pin` pins the present role.

    `until` says which read-back `set` waits for: new work is taken, or the old is gone as well.
    """

    action: Literal["list", "set", "pin", "unpin"]
    worker_id: str = ""
    role: Role | None = None
    drain: DrainMode = "overlap"
    until: Literal["accepting", "drained"] = "accepting"
    timeout_s: float = 60.0


class WorkerRow(Message):
    """One line of `dopd roles`. Times are seconds since the command was sent, None while open."""

    worker_id: str
    role: Role
    phase: str
    epoch: int
    incarnation: str
    running: int
    waiting: int
    kv_usage: float
    pinned: Role | None = None
    age_s: float = 0.0
    gpus: int = 1
    engine: str = ""


class RolesReply(Message):
    """The cluster after the action was read back. `accepting_s` and `drained_s` count from the command."""

    workers: tuple[WorkerRow, ...]
    accepting_s: float | None = None
    drained_s: float | None = None


class Considered(Message):
    """A split that was considered: the share of requests it should serve within the targets, and how much of the limit
    of its `binding` constraint it leaves."""

    prefill: int
    decode: int
    attainment: float
    headroom: float
    binding: str = ""


class Change(Message):
    """One worker's change of role in a decision, and what came of it.

    `outcome` is "" while open, then accepting, drained, or why it did not happen. Times are seconds since the command.
    """

    worker_id: str
    before: Role
    role: Role
    incarnation: str = ""
    drain: DrainMode = "overlap"
    epoch: int = 0
    deadline_s: float = 0.0
    outcome: str = ""
    accepting_s: float | None = None
    drained_s: float | None = None


class DecisionRecord(Message):
    """One decision of the ratio-planner as the ledger keeps it, also one to change nothing.

    `why` is who wanted it: plan, repair, pin or person; `reason` the policy's code, `needs` what it lacked. `prefill`
    and `decode` workers served at `at_s`. The first of `alternatives` was chosen. `traceparent` is the decision's span.
    """

    decision_id: str
    at_s: float
    term: int
    why: str
    reason: str
    prefill: int
    decode: int
    needs: str = ""
    binding: str = ""
    inputs: dict[str, float] = msgspec.field(default_factory=dict)
    alternatives: tuple[Considered, ...] = ()
    forecast: Forecast | None = None
    changes: tuple[Change, ...] = ()
    dry_run: bool = False
    planner_id: str = ""
    traceparent: str = ""


class ChangeOutcome(Message):
    """What came of a change, written to the ledger after its decision."""

    decision_id: str
    worker_id: str
    outcome: str
    after_s: float | None = None


class DecisionsRequest(Message, forbid_unknown_fields=True):
    """The last `limit` decisions, or the one whose id begins so."""

    decision_id: str = ""
    limit: int = 20


class DecisionsReply(Message):
    """Oldest first, each with what came of its changes so far."""

    decisions: tuple[DecisionRecord, ...]
