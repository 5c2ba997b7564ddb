"""What the leading planner answers to people: roles listed, set and pinned, and decisions told.

Consumes `RolesRequest`s and `DecisionsRequest`s; produces their replies, a role change's once it is read back.
"""

import asyncio
from typing import Protocol

from dopd.bus import Bus, Subscription
from dopd.config import PlannerConfig
from dopd.errors import BadRequest, Conflict, DeadlineExceeded, LedgerLost, Unavailable
from dopd.runtime.clock import Runtime
from dopd_planner import core
from dopd_planner.core import Wish
from dopd_planner.heard import Heard
from dopd_planner.history import History
from dopd_planner.lead import Lead
from dopd_planner.pins import Pins
from dopd_proto.base import DrainMode, Role
from dopd_proto.control import DecisionsReply, DecisionsRequest, RolesReply, RolesRequest
from dopd_proto.subjects import DECISIONS, ROLES
from dopd_proto.telemetry import WorkerState


class Refused(BadRequest):
    """The wish contradicts a rule of the cluster."""

    code, status = "role_change_refused", 409


class Leader(Protocol):
    """The planner, as far as people's wishes need it."""

    heard: Heard
    lead: Lead
    pins: Pins
    history: History

    async def change_for_person(self, state: WorkerState, role: Role, drain: DrainMode) -> Wish | None:
        """Pin, decide and command; None: there is nothing to change. Raises Refused, LedgerLost and Conflict."""


class People:
    """Served while its planner leads."""

    def __init__(self, leader: Leader, bus: Bus, runtime: Runtime, config: PlannerConfig) -> None:
        self._leader, self._bus, self._runtime, self._config = leader, bus, runtime, config
        self._serving: list[Subscription] = []
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Answer from now on."""
        if not self._serving:
            self._serving = [
                await self._bus.serve(ROLES.at(), self._on_roles),
                await self._bus.serve(DECISIONS.at(), self._on_decisions),
            ]

    async def close(self) -> None:
        """Answer no longer."""
        for subscription in self._serving:
            await subscription.stop()
        self._serving = []

    def heard_news(self) -> None:
        """Somebody may wait for what a worker has just said."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _on_roles(self, request: RolesRequest) -> RolesReply:
        try:
            return await self._roles(request)
        except LedgerLost as error:
            raise Unavailable(f"the ledger does not answer, roles are held: {error}") from error
        except Conflict as error:
            raise Unavailable(f"another planner leads by now: {error}") from error

    async def _roles(self, request: RolesRequest) -> RolesReply:
        worker_id = request.worker_id
        if request.action == "list":
            return self._table()
        state = self._leader.heard.live().get(worker_id)
        if state is None and not self._leader.lead.listened:
            raise Unavailable(f"worker {worker_id!r} has not been heard yet")
        if state is None:
            raise BadRequest(f"there is no worker {worker_id!r}", "worker_id")
        if request.action == "set":
            return await self._set(request, state)
        await self._leader.pins.pin(worker_id, state.role if request.action == "pin" else None)
        return self._table()

    async def _set(self, request: RolesRequest, state: WorkerState) -> RolesReply:
        if request.role is None:
            raise BadRequest("a role is needed: prefill, decode or mixed", "role")
        wish = await self._leader.change_for_person(state, request.role, request.drain)
        return self._table(0.0, 0.0) if wish is None else await self._read_back(wish, request)

    async def _read_back(self, wish: Wish, request: RolesRequest) -> RolesReply:
        deadline_s = wish.sent_s + request.timeout_s
        while not self._config.dry_run:
            state = self._leader.heard.live().get(wish.worker_id)
            if state is not None and core.accepting(wish, state):
                drained_s = None if state.drained_at_s is None else state.drained_at_s - wish.sent_s
                if drained_s is not None or request.until == "accepting":
                    return self._table(state.accepting_at_s - wish.sent_s, drained_s)
            else:
                reason = core.void(wish, state, self._runtime.now())
                if reason:
                    raise Refused(f"not read back: {reason}", "worker_id")
            try:
                async with asyncio.timeout(max(0.0, deadline_s - self._runtime.now())):
                    await self._changed.wait()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"{wish.worker_id} did not show {request.until} in {request.timeout_s:g} s"
                ) from None
        return self._table()

    async def _on_decisions(self, request: DecisionsRequest) -> DecisionsReply:
        history = self._leader.history
        found = history.like(request.decision_id) if request.decision_id else history.last(request.limit)
        if request.decision_id and not found:
            raise BadRequest(f"there is no decision {request.decision_id!r} among the last ones", "decision_id")
        return DecisionsReply(decisions=found)

    def _table(self, accepting_s: float | None = None, drained_s: float | None = None) -> RolesReply:
        rows = core.rows(self._leader.heard.live(), self._leader.pins.roles, self._runtime.now())
        return RolesReply(workers=rows, accepting_s=accepting_s, drained_s=drained_s)
