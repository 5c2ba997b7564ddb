"""`RatioPlanner`: rounds of compare and command, under a ledger lease.

Consumes worker states, forecasts and people's wishes; produces `RoleChange` commands and decision records. Without the
ledger it holds all roles and says so: a second planner might be leading.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from dopd.bus import Bus, Delivery, Subscription
from dopd.config import PlannerConfig
from dopd.errors import BadRequest, Conflict, DeadlineExceeded, LedgerLost, Unavailable
from dopd.ledger import Lease, Ledger
from dopd.obs.log import get_logger
from dopd.policy.base import Plan, Planner
from dopd.runtime.clock import Runtime
from dopd.slo import Slo
from dopd_planner import core, history, sight
from dopd_planner.core import Wish
from dopd_planner.history import History
from dopd_planner.sight import Pace
from dopd_proto.base import DrainMode, Role
from dopd_proto.control import (
    Change,
    ChangeOutcome,
    Considered,
    DecisionRecord,
    DecisionsReply,
    DecisionsRequest,
    RolesReply,
    RolesRequest,
)
from dopd_proto.subjects import DECISIONS, FORECAST, GATEWAY_STATE, ROLE_CHANGE, ROLES, WORKER_STATE
from dopd_proto.telemetry import Forecast, GatewayState, WorkerState

PINS = "pins"


class Refused(BadRequest):
    """The wish contradicts a rule of the cluster."""

    code, status = "role_change_refused", 409


class RatioPlanner:
    """One planner process; of several, the one that holds the lease leads."""

    def __init__(
        self,
        planner_id: str,
        bus: Bus,
        ledger: Ledger,
        runtime: Runtime,
        config: PlannerConfig,
        slo: Slo,
        planner: Planner | None = None,
    ) -> None:
        self.planner_id = runtime.new_id(planner_id)
        self._bus, self._ledger, self._runtime, self._config, self._slo = bus, ledger, runtime, config, slo
        self._planner = planner
        self._plan_state: Any = planner.initial() if planner is not None else None
        self._states: dict[str, tuple[WorkerState, float]] = {}
        self._gateways: dict[str, tuple[GatewayState, float]] = {}
        self._paces: dict[str, Pace] = {}
        self._forecast: Forecast | None = None
        self._pins: dict[str, Role] = {}
        self._pins_revision = 0
        self._pinning = asyncio.Lock()
        self._wishes: dict[str, Wish] = {}
        self._draining: dict[str, Wish] = {}
        self._outcomes: list[ChangeOutcome] = []
        self._history = History()
        self._under_way: list[tuple[DecisionRecord, Change]] = []
        self._lease: Lease | None = None
        self._term = self._sequence = 0
        self._since_s = self._round_s = float("-inf")
        self._subscriptions: list[Subscription] = []
        self._serving: list[Subscription] = []
        self._round: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._log = get_logger().bind(planner_id=self.planner_id)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and begin the rounds."""
        self._subscriptions = [
            await self._bus.subscribe(WORKER_STATE.at(), self._on_state),
            await self._bus.subscribe(GATEWAY_STATE.at(), self._on_gateway),
            await self._bus.subscribe(FORECAST.at(), self._on_forecast),
        ]
        self._round = asyncio.create_task(self._rounds())

    async def stop(self) -> None:
        """Give the lease back, so that another may lead at once."""
        self.crash()
        for subscription in (*self._subscriptions, *self._serving):
            await subscription.stop()
        if self._lease is not None:
            await self._ledger.release(self._lease)
        await self._ledger.close()

    def crash(self) -> None:
        """Vanish as after SIGKILL."""
        if self._round is not None:
            self._round.cancel()

    @property
    def leading(self) -> bool:
        """Whether this planner may command now."""
        return self._lease is not None

    # --- what is heard ------------------------------------------------------------------------------------------

    def _on_state(self, delivery: Delivery[WorkerState]) -> None:
        state = delivery.message
        known = self._states.get(state.worker_id)
        if known is not None and state.sent_s < known[0].sent_s:
            return  # overtaken by a newer one, or late words of an earlier life
        self._states[state.worker_id] = (state, self._runtime.now())
        self._paces.setdefault(state.worker_id, Pace()).saw(state)
        wish = self._wishes.get(state.worker_id)
        if wish is not None and core.accepting(wish, state):
            del self._wishes[state.worker_id]
            self._draining[state.worker_id] = wish
            self._outcome(wish, "accepting", state.accepting_at_s - wish.sent_s)
        wish = self._draining.get(state.worker_id)
        if wish is not None and (state.drained_at_s is not None or state.epoch > wish.epoch):
            del self._draining[state.worker_id]
            if state.drained_at_s is not None:
                self._outcome(wish, "drained", state.drained_at_s - wish.sent_s)
        self._changed.set()
        self._changed = asyncio.Event()

    def _on_forecast(self, delivery: Delivery[Forecast]) -> None:
        self._forecast = delivery.message  # of those made together the one with the shortest horizon comes last

    def _on_gateway(self, delivery: Delivery[GatewayState]) -> None:
        self._gateways[delivery.message.gateway_id] = (delivery.message, self._runtime.now())

    def _live(self) -> dict[str, WorkerState]:
        now_s = self._runtime.now()
        return {w: state for w, (state, heard_s) in self._states.items() if now_s - heard_s <= state.lease_s}

    # --- rounds -------------------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        while True:
            try:
                await self._one_round()
            except LedgerLost as error:
                if self._lease is not None:
                    self._log.error("ledger_lost", detail=str(error))
                await self._lead(None)
            except Conflict:
                self._log.info("lease_contended")
            await asyncio.sleep(self._config.round_s)

    async def _one_round(self) -> None:
        self._note_time()
        await self._lead(await self._ledger.acquire("planner", self.planner_id, self._config.lease_s))
        if self._lease is None:
            return
        if self._listened():
            await self._compare(self._live())
        for wish in self._wishes.values():
            self._command(wish)
        await self._record_outcomes()

    def _note_time(self) -> None:
        """Long without a round: we were frozen, or have just been started."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._round_s > self._config.lease_s:
            self._since_s = now_s
        self._round_s = now_s

    def _listened(self) -> bool:
        """Whether silence means something: after a start, a reconnect or a freeze all get a lease to be heard."""
        now_s = asyncio.get_running_loop().time()
        return self._bus.connected and now_s - max(self._since_s, self._bus.connected_since_s) > self._config.lease_s

    async def _compare(self, states: Mapping[str, WorkerState]) -> None:
        """Give up wishes that cannot come true, and decide what differs from what is wanted: first what mends an empty
        pool, then people's pins, then the policy's plan, and never two things for one worker."""
        self._resume(states)
        self._expire(states)
        plan = self._plan(states)
        roles: dict[str, dict[str, Role]] = {"repair": core.repair(states, self._pins, self._leaving())}
        roles["pin"] = self._pins
        roles["plan"] = dict(plan.roles) if plan is not None else {}
        for why, wanted in roles.items():
            free = {w: role for w, role in wanted.items() if why == "pin" or w not in self._pins}
            changes, refused = core.due(states, self._leaving(), free)
            if changes or (why == "plan" and plan is not None):
                await self._decide(changes, why, plan if why == "plan" else None, refused)

    def _resume(self, states: Mapping[str, WorkerState]) -> None:
        """Take up what an earlier leader has decided and not seen come true, instead of deciding it again."""
        for record, change in self._under_way:
            wish = core.wish_of(record, change)
            if self._done(wish, states.get(change.worker_id)):
                continue
            assert self._lease is not None, "only a leader compares"
            self._wishes[wish.worker_id] = replace(wish, epoch=self._next_epoch(self._lease))
            self._log.info("role_change_resumed", worker_id=wish.worker_id, role=wish.role)
        self._under_way = []

    def _done(self, wish: Wish, state: WorkerState | None) -> bool:
        """Whether nothing is left to command; says what came of it."""
        reason = core.void(wish, state, self._runtime.now())
        if state is not None and core.accepting(wish, state):
            self._draining[wish.worker_id] = wish
            self._outcome(wish, "accepting", state.accepting_at_s - wish.sent_s)
        elif reason:
            self._outcome(wish, reason)
        else:
            return False
        return True

    async def _lead(self, lease: Lease | None) -> None:
        """Begin or end to lead. Only the leader answers people."""
        if lease is not None and (self._lease is None or lease.term != self._lease.term):
            await self._load_pins()
            self._history = await history.recall(self._ledger)
            self._under_way = list(self._history.under_way())
            if lease.term != self._term:  # in the same term epochs must go on
                self._term, self._sequence = lease.term, 0
            self._wishes.clear()
            self._draining.clear()
            self._log.info("planner_leads", term=lease.term)
        self._lease = lease
        if lease is not None and not self._serving:
            self._serving = [
                await self._bus.serve(ROLES.at(), self._on_roles),
                await self._bus.serve(DECISIONS.at(), self._on_decisions),
            ]
        elif lease is None:
            for subscription in self._serving:
                await subscription.stop()
            self._serving = []

    def _plan(self, states: Mapping[str, WorkerState]) -> Plan | None:
        """The policy's word on the cluster as it will be when all commands are obeyed; None where it moves nobody."""
        if self._planner is None:
            return None
        now_s = self._runtime.now()
        gateways = [state for state, heard_s in self._gateways.values() if now_s - heard_s <= state.lease_s]
        view = sight.cluster_view(states, gateways, self._paces, self._pins, self._leaving())
        forecast = sight.forecast_view(self._forecast)
        self._plan_state, plan = self._planner.plan(self._plan_state, forecast, view, self._slo, now_s)
        return plan

    def _leaving(self) -> dict[str, Role]:
        return {w: wish.role for w, wish in self._wishes.items()}

    def _expire(self, states: Mapping[str, WorkerState]) -> None:
        now_s = self._runtime.now()
        for worker_id, wish in list(self._wishes.items()):
            reason = core.void(wish, states.get(worker_id), now_s)
            if reason:
                del self._wishes[worker_id]
                self._outcome(wish, reason)

    # --- decide and command -------------------------------------------------------------------------------------

    async def _decide(
        self,
        changes: Sequence[tuple[WorkerState, Role]],
        why: str,
        plan: Plan | None = None,
        refused: Sequence[Change] = (),
        drain: DrainMode = "overlap",
    ) -> list[Wish]:
        """Record a decision, then wish and command it. One that changes nothing is recorded where it is news."""
        if self._lease is None:
            raise LedgerLost("the lease has lapsed")
        now_s = self._runtime.now()
        wishes = [
            Wish(
                worker_id=state.worker_id, incarnation=state.incarnation, role=role, drain=drain,
                epoch=self._next_epoch(self._lease), decision_id="", sent_s=now_s,
                deadline_s=now_s + self._config.command_timeout_s,
            )
            for state, role in changes
        ]  # fmt: skip
        made = tuple(wish.change(state.role) for wish, (state, _) in zip(wishes, changes, strict=True))
        record = self._record(why, plan, (*made, *refused))
        if (not made or (self._config.dry_run and why != "person")) and not self._history.is_news(record):
            return []
        record = msgspec.structs.replace(record, decision_id=self._runtime.new_id("decision"))
        await history.write(self._ledger, record)
        self._history.add(record)
        wishes = [replace(wish, decision_id=record.decision_id) for wish in wishes]
        for wish in wishes:
            self._log.info(
                "role_change_decided", worker_id=wish.worker_id, role=wish.role, drain=drain, why=why,
                reason=record.reason, decision_id=wish.decision_id,
            )  # fmt: skip
            if not self._config.dry_run:
                self._wishes[wish.worker_id] = wish
                self._command(wish)
        return wishes

    def _record(self, why: str, plan: Plan | None, changes: tuple[Change, ...]) -> DecisionRecord:
        assert self._lease is not None, "only a leader decides"
        prefill, decode = core.serving(self._live(), self._leaving())
        plan = plan or Plan({}, reason=why)
        return DecisionRecord(
            decision_id="", at_s=self._runtime.now(), term=self._lease.term, why=why, reason=plan.reason or "unsaid",
            prefill=prefill, decode=decode, needs=plan.needs, binding=plan.binding, inputs=dict(plan.inputs),
            alternatives=tuple(
                Considered(prefill=a.prefill, decode=a.decode, attainment=a.attainment, headroom=a.headroom,
                           binding=a.binding)
                for a in plan.alternatives
            ),
            forecast=self._forecast if why == "plan" else None, changes=changes, dry_run=self._config.dry_run,
            planner_id=self.planner_id,
        )  # fmt: skip

    def _next_epoch(self, lease: Lease) -> int:
        self._sequence += 1
        return lease.term << 32 | self._sequence

    def _command(self, wish: Wish) -> None:
        self._bus.publish(ROLE_CHANGE.at(worker_id=wish.worker_id), wish.command())

    def _outcome(self, wish: Wish, outcome: str, after_s: float | None = None) -> None:
        self._log.info("role_change_" + outcome, worker_id=wish.worker_id, role=wish.role, after_s=after_s)
        self._outcomes.append(
            ChangeOutcome(decision_id=wish.decision_id, worker_id=wish.worker_id, outcome=outcome, after_s=after_s)
        )

    async def _record_outcomes(self) -> None:
        while self._outcomes:
            await history.write(self._ledger, self._outcomes[0])
            self._history.add(self._outcomes.pop(0))

    # --- people -------------------------------------------------------------------------------------------------

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
        state = self._live().get(worker_id)
        if state is None and not self._listened():
            raise Unavailable(f"worker {worker_id!r} has not been heard yet")
        if state is None:
            raise BadRequest(f"there is no worker {worker_id!r}", "worker_id")
        if request.action == "set":
            return await self._set(request, state)
        await self._pin(worker_id, state.role if request.action == "pin" else None)
        return self._table()

    async def _set(self, request: RolesRequest, state: WorkerState) -> RolesReply:
        if request.role is None:
            raise BadRequest("a role is needed: prefill, decode or mixed", "role")
        leaving = {w: role for w, role in self._leaving().items() if w != request.worker_id}
        reason = core.refusal(self._live(), leaving, request.worker_id, request.role)
        if reason:
            raise Refused(reason, "role")
        await self._pin(request.worker_id, request.role)
        if state.role == request.role and request.worker_id not in self._wishes:
            return self._table(0.0, 0.0)
        (wish,) = await self._decide([(state, request.role)], "person", drain=request.drain)
        return await self._read_back(wish, request)

    async def _read_back(self, wish: Wish, request: RolesRequest) -> RolesReply:
        deadline_s = wish.sent_s + request.timeout_s
        while not self._config.dry_run:
            state = self._live().get(wish.worker_id)
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
        found = self._history.like(request.decision_id) if request.decision_id else self._history.last(request.limit)
        if request.decision_id and not found:
            raise BadRequest(f"there is no decision {request.decision_id!r} among the last ones", "decision_id")
        return DecisionsReply(decisions=found)

    def _table(self, accepting_s: float | None = None, drained_s: float | None = None) -> RolesReply:
        rows = core.rows(self._live(), self._pins, self._runtime.now())
        return RolesReply(workers=rows, accepting_s=accepting_s, drained_s=drained_s)

    # --- pins ---------------------------------------------------------------------------------------------------

    async def _load_pins(self) -> None:
        found = await self._ledger.get(PINS)
        self._pins, self._pins_revision = {}, 0
        if found is not None:
            self._pins, self._pins_revision = msgspec.msgpack.decode(found[0], type=dict[str, Role]), found[1]

    async def _pin(self, worker_id: str, role: Role | None) -> None:
        """Pin or unpin, one after the other: each write needs the revision of the one before."""
        async with self._pinning:
            try:
                await self._store_pin(worker_id, role)
            except Conflict:
                # A write of ours whose answer was lost. Had somebody else written, the next round would end our lead.
                await self._load_pins()
                await self._store_pin(worker_id, role)

    async def _store_pin(self, worker_id: str, role: Role | None) -> None:
        pins = {w: pinned for w, pinned in self._pins.items() if w != worker_id}
        if role is not None:
            pins[worker_id] = role
        self._pins_revision = await self._ledger.put(PINS, msgspec.msgpack.encode(pins), self._pins_revision)
        self._pins = pins
