"""Commands of the ratio-planner to workers, and of people to the ratio-planner."""

from typing import Literal

from dopd_proto.base import DrainMode, Message, Role


class RoleChange(Message):
    """Take this role. `epoch` is (lease term << 32 | sequence): a worker obeys only one higher than its own.

    Repeated until the worker's own state shows it; repeating does nothing. Void after `deadline_s`.
    """

    worker_id: str
    incarnation: str
    role: Role
    epoch: int
    decision_id: str
    drain: DrainMode
    deadline_s: float
    sent_s: float


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
