"""Which roles are wanted, which commands that takes, and which wishes are refused. Pure.

Level-triggered: commands follow from wish and state alone, so a lost, late or doubled command does no harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dopd_proto.base import DrainMode, Role
from dopd_proto.control import Change, DecisionRecord, RoleChange, WorkerRow
from dopd_proto.telemetry import WorkerState

POOLS: tuple[Role, Role] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Wish:
    """One worker's wanted role, from a decision. The command is repeated with the same epoch until read back."""

    worker_id: str
    incarnation: str
    role: Role
    drain: DrainMode
    epoch: int
    decision_id: str
    sent_s: float
    deadline_s: float
    traceparent: str = ""
    """Of the command's span, and before it is commanded of the decision's."""

    def command(self, ahead_s: float = 0.0) -> RoleChange:
        """The message, with the times of a clock that is so far ahead of ours."""
        return RoleChange(
            worker_id=self.worker_id, incarnation=self.incarnation, role=self.role, epoch=self.epoch,
            decision_id=self.decision_id, drain=self.drain, deadline_s=self.deadline_s + ahead_s,
            sent_s=self.sent_s + ahead_s, traceparent=self.traceparent,
        )  # fmt: skip

    def change(self, before: Role) -> Change:
        """As it stands in the record."""
        return Change(
            worker_id=self.worker_id, before=before, role=self.role, incarnation=self.incarnation, drain=self.drain,
            epoch=self.epoch, deadline_s=self.deadline_s,
        )  # fmt: skip


def wish_of(record: DecisionRecord, change: Change) -> Wish:
    """The wish that a recorded change came from."""
    return Wish(
        worker_id=change.worker_id, incarnation=change.incarnation, role=change.role, drain=change.drain,
        epoch=change.epoch, decision_id=record.decision_id, sent_s=record.at_s, deadline_s=change.deadline_s,
        traceparent=record.traceparent,
    )  # fmt: skip


def accepting(wish: Wish, state: WorkerState) -> bool:
    """Whether the worker's own state shows that the wish came true."""
    return state.role == wish.role and state.epoch >= wish.epoch


def void(wish: Wish, state: WorkerState | None, now_s: float) -> str:
    """Why a wish will never be read back, empty while it may."""
    if state is None or state.incarnation != wish.incarnation:
        return "worker_lost"
    if state.epoch > wish.epoch:
        return "superseded"
    return "timed_out" if now_s > wish.deadline_s else ""


def refusal(states: Mapping[str, WorkerState], leaving: Mapping[str, Role], worker_id: str, role: Role) -> str:
    """Why this change must not be made, empty when it may.

    `leaving` are changes under way (worker, its coming role): such a worker counts for neither pool until read back.
    """
    state = states.get(worker_id)
    if state is None:
        return f"there is no worker {worker_id!r}"
    if state.role == role:
        return ""
    for pool in POOLS:
        stays = [
            other.worker_id
            for other in states.values()
            if other.worker_id not in leaving
            and other.worker_id != worker_id
            and other.phase == "serving"
            and other.role in (pool, "mixed")
        ]
        if state.role in (pool, "mixed") and role not in (pool, "mixed") and not stays:
            return f"would leave no {pool} worker"
    return _unlike(states, state, role)


def _unlike(states: Mapping[str, WorkerState], state: WorkerState, role: Role) -> str:
    """Why this worker's engine does not fit into the pools that the role is of, empty when it does."""
    joins = [pool for pool in POOLS if role in (pool, "mixed") and state.role not in (pool, "mixed")]
    for other in states.values():
        works = other.worker_id != state.worker_id and other.phase == "serving"
        if works and other.engine != state.engine and any(other.role in (pool, "mixed") for pool in joins):
            return f"its engine is {state.engine!r}, that of {other.role} worker {other.worker_id} {other.engine!r}"
    return ""


def due(
    states: Mapping[str, WorkerState], leaving: Mapping[str, Role], wanted: Mapping[str, Role]
) -> tuple[list[tuple[WorkerState, Role]], list[Change]]:
    """What to command for these roles, and what must not be, with the reason. A worker that is changing is let be."""
    changes: list[tuple[WorkerState, Role]] = []
    refused: list[Change] = []
    under_way = dict(leaving)
    for worker_id, role in sorted(wanted.items()):
        state = states.get(worker_id)
        if state is None or state.role == role or worker_id in under_way:
            continue
        reason = refusal(states, under_way, worker_id, role)
        if reason:
            refused.append(Change(worker_id=worker_id, before=state.role, role=role, outcome=f"refused: {reason}"))
        else:
            changes.append((state, role))
            under_way[worker_id] = role
    return changes, refused


def serving(states: Mapping[str, WorkerState], leaving: Mapping[str, Role]) -> tuple[int, int]:
    """(prefill, decode) workers that serve, by the role they are to have; mixed ones count as decode workers."""
    roles = [leaving.get(w, state.role) for w, state in states.items() if state.phase == "serving"]
    return roles.count("prefill"), len(roles) - roles.count("prefill")


def repair(
    states: Mapping[str, WorkerState], pinned: Mapping[str, Role], leaving: Mapping[str, Role]
) -> dict[str, Role]:
    """A change that gives an empty pool a worker again, taken from a pool that can spare one.

    A pool with a worker that is starting is not empty: it will serve without any change.
    """
    serving = {w: s for w, s in states.items() if s.phase == "serving" and w not in leaving}
    coming = [s for s in states.values() if s.phase == "starting"]
    for pool in POOLS:
        present = [*serving.values(), *coming]
        covered = any(s.role in (pool, "mixed") for s in present) or pool in leaving.values()
        spare = [w for w, s in sorted(serving.items()) if s.role != pool and w not in pinned]
        if not covered and len(spare) > 1:
            return {min(spare, key=lambda w: (serving[w].running + serving[w].waiting, w)): pool}
    return {}


def rows(states: Mapping[str, WorkerState], pinned: Mapping[str, Role], now_s: float) -> tuple[WorkerRow, ...]:
    """The table that `dopd roles` prints."""
    return tuple(
        WorkerRow(
            worker_id=state.worker_id, role=state.role, phase=state.phase, epoch=state.epoch,
            incarnation=state.incarnation, running=state.running, waiting=state.waiting,
            kv_usage=state.kv_used_tokens / state.kv_total_tokens if state.kv_total_tokens else 0.0,
            pinned=pinned.get(state.worker_id), age_s=max(0.0, now_s - state.sent_s),
            gpus=state.gpus, engine=state.engine,
        )
        for _, state in sorted(states.items())
    )  # fmt: skip
