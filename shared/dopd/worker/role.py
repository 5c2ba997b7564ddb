"""The role of a worker and what a `RoleChange` does to it. Pure: states and times in, states out.

A change is accepted with a higher epoch only. `overlap` and `migrate` flip at once; `wait` flips when the work in hand
is gone. Work that was placed before the worker's epoch is accepted in any case: it was right when it was sent.
Where a role takes `start_s` to start, every drain is a `wait`, and the worker is away for that long after it: as if one
process stopped and another started.
"""

from dataclasses import dataclass, replace
from typing import Literal

from dopd_proto.base import Role
from dopd_proto.control import RoleChange

Kind = Literal["prefill", "decode"]
Refusal = Literal["", "wrong_role", "draining"]


@dataclass(frozen=True, slots=True)
class RoleState:
    """`next_role` is set while a `wait` drain runs. `drained_at_s` is None while work of the old role is left.

    `ready_at_s` is when the next role's start is over; it is set once the old work is gone.
    """

    role: Role
    epoch: int = 0
    decision_id: str = ""
    accepting_at_s: float = 0.0
    drained_at_s: float | None = 0.0
    next_role: Role | None = None
    ready_at_s: float | None = None

    @property
    def draining(self) -> bool:
        return self.drained_at_s is None


def change(state: RoleState, command: RoleChange, has_work: bool, now_s: float, start_s: float = 0.0) -> RoleState:
    """The state after a command; the same object when the command is stale, late or a repetition.

    `start_s` is that of the commanded role. A start under way goes on when the command names its role; for another
    role, the old one among them, it begins anew: the old process is gone.
    """
    if command.epoch <= state.epoch or now_s > command.deadline_s:
        return state
    state = replace(state, epoch=command.epoch, decision_id=command.decision_id)
    if state.ready_at_s is not None:
        ready_at_s = state.ready_at_s if command.role == state.next_role else now_s + start_s
        return replace(state, next_role=command.role, ready_at_s=ready_at_s)
    if command.role == state.role:
        return replace(state, next_role=None, accepting_at_s=now_s, drained_at_s=now_s)
    if start_s or (command.drain == "wait" and has_work):
        return replace(state, next_role=command.role, drained_at_s=None)
    return replace(state, role=command.role, next_role=None, accepting_at_s=now_s, drained_at_s=None)


def settle(state: RoleState, kinds: set[Kind], now_s: float, start_s: float = 0.0) -> RoleState:
    """The state after work has ended or time has passed; `kinds` is what is left in hand.

    `start_s` is that of the next role.
    """
    if not state.draining:
        return state
    if state.next_role is not None:
        if kinds:
            return state
        if start_s and state.ready_at_s is None:
            return replace(state, ready_at_s=now_s + start_s)
        if state.ready_at_s is not None and now_s < state.ready_at_s:
            return state
        return replace(
            state, role=state.next_role, next_role=None, ready_at_s=None, accepting_at_s=now_s, drained_at_s=now_s
        )
    left = set() if state.role == "mixed" else kinds - {state.role}
    return state if left else replace(state, drained_at_s=now_s)


def refusal(state: RoleState, kind: Kind, placed_epoch: int, any_role: bool) -> Refusal:
    """Why a piece of work is not taken; empty when it is."""
    if state.ready_at_s is not None:
        return "draining"
    if placed_epoch < state.epoch or any_role:
        return ""
    if state.next_role is not None:
        return "draining"
    return "" if state.role in (kind, "mixed") else "wrong_role"
