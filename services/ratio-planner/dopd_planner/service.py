"""`RatioPlanner`: rounds of compare and command, under a ledger lease.

Consumes worker states, forecasts and people's wishes; produces `RoleChange` commands and decision records. Without the
ledger it holds all roles and says so: a second planner might be leading.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from dopd.bus import Bus, Delivery, Subscription
from dopd.cluster import ClusterView, WorkerView
from dopd.config import PlannerConfig
from dopd.errors import BadRequest, Conflict, DeadlineExceeded, LedgerLost, Unavailable
from dopd.ledger import Lease, Ledger
from dopd.obs.log import get_logger
from dopd.policy.base import ForecastView, Plan, Planner
from dopd.runtime.clock import Runtime
from dopd.slo import Slo
from dopd_planner import core
from dopd_planner.core import Wish
from dopd_proto.base import DrainMode, Role
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.subjects import FORECAST, ROLE_CHANGE, ROLES, WORKER_STATE
from dopd_proto.telemetry import Forecast, WorkerState

DECISIONS = "decisions"
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
        self._forecast: ForecastView | None = None
        self._pins: dict[str, Role] = {}
        self._pins_revision = 0
        self._pinning = asyncio.Lock()
        self._wishes: dict[str, Wish] = {}
        self._draining: dict[str, Wish] = {}
        self._outcomes: list[dict[str, Any]] = []
        self._lease: Lease | None = None
        self._sequence = 0
        self._since_s = self._round_s = float("-inf")
        self._subscriptions: list[Subscription] = []
        self._serving: Subscription | None = None
        self._round: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._log = get_logger().bind(planner_id=self.planner_id)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and begin the rounds."""
        self._subscriptions = [
            await self._bus.subscribe(WORKER_STATE.at(), self._on_state),
            await self._bus.subscribe(FORECAST.at(), self._on_forecast),
        ]
        self._round = asyncio.create_task(self._rounds())

    async def stop(self) -> None:
        """Give the lease back, so that another may lead at once."""
        self.crash()
        for subscription in self._subscriptions:
            await subscription.stop()
        if self._serving is not None:
            await self._serving.stop()
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
        f = delivery.message
        self._forecast = ForecastView(f.requests_per_s, f.isl_tokens_mean, f.isl_tokens_var, f.osl_tokens_mean)

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
        """Give up wishes that cannot come true, and decide what differs from what is wanted."""
        self._expire(states)
        wanted = self._wanted(states)
        for worker_id, role in sorted(wanted.items()):
            due = states[worker_id].role != role and worker_id not in self._wishes
            if due and not core.refusal(states, self._leaving(), worker_id, role):
                await self._decide(states[worker_id], role, "overlap", "plan")

    async def _lead(self, lease: Lease | None) -> None:
        """Begin or end to lead. Only the leader answers people."""
        if lease is not None and (self._lease is None or lease.term != self._lease.term):
            await self._load_pins()
            self._sequence = 0
            self._wishes.clear()
            self._log.info("planner_leads", term=lease.term)
        self._lease = lease
        if lease is not None and self._serving is None:
            self._serving = await self._bus.serve(ROLES.at(), self._on_roles)
        elif lease is None and self._serving is not None:
            await self._serving.stop()
            self._serving = None

    def _wanted(self, states: Mapping[str, WorkerState]) -> dict[str, Role]:
        """The policy's roles, overruled by pins; an empty pool is repaired first."""
        wanted: dict[str, Role] = dict(core.repair(states, self._pins, self._leaving()))
        if self._planner is not None:
            self._plan_state, plan = self._planner.plan(
                self._plan_state, self._forecast, self._cluster(states), self._slo, self._runtime.now()
            )
            wanted = {**self._known(plan, states), **wanted}
        return {**wanted, **{w: role for w, role in self._pins.items() if w in states}}

    def _known(self, plan: Plan, states: Mapping[str, WorkerState]) -> dict[str, Role]:
        return {w: role for w, role in plan.roles.items() if w in states}

    def _cluster(self, states: Mapping[str, WorkerState]) -> ClusterView:
        return ClusterView(tuple(
            WorkerView(
                worker_id=s.worker_id, incarnation=s.incarnation, role=s.role, epoch=s.epoch,
                serving=s.phase == "serving", running=s.running, waiting=s.waiting, decoding=s.decoding,
                queued_prefill_tokens=s.queued_prefill_tokens, context_tokens=s.context_tokens,
                kv_used_tokens=s.kv_used_tokens, kv_total_tokens=s.kv_total_tokens, kv_domain=s.kv_domain,
                drained=s.drained_at_s is not None,
            )
            for _, s in sorted(states.items())
        ))  # fmt: skip

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

    async def _decide(self, state: WorkerState, role: Role, drain: DrainMode, why: str) -> Wish:
        """Record a change, then wish and command it."""
        if self._lease is None:
            raise LedgerLost("the lease has lapsed")
        now_s = self._runtime.now()
        self._sequence += 1
        wish = Wish(
            worker_id=state.worker_id,
            incarnation=state.incarnation,
            role=role,
            drain=drain,
            epoch=self._lease.term << 32 | self._sequence,
            decision_id=self._runtime.new_id("decision"),
            sent_s=now_s,
            deadline_s=now_s + self._config.command_timeout_s,
        )
        record = {"kind": "decision", "why": why, "from": state.role, "at_s": now_s, **msgspec.to_builtins(wish)}
        await self._ledger.append(DECISIONS, msgspec.msgpack.encode(record))
        self._log.info("role_change_decided", worker_id=wish.worker_id, role=role, drain=drain, why=why)
        if not self._config.dry_run:
            self._wishes[wish.worker_id] = wish
            self._command(wish)
        return wish

    def _command(self, wish: Wish) -> None:
        self._bus.publish(ROLE_CHANGE.at(worker_id=wish.worker_id), wish.command())

    def _outcome(self, wish: Wish, outcome: str, after_s: float | None = None) -> None:
        self._log.info("role_change_" + outcome, worker_id=wish.worker_id, role=wish.role, after_s=after_s)
        self._outcomes.append(
            {"kind": "outcome", "decision_id": wish.decision_id, "outcome": outcome, "after_s": after_s}
        )

    async def _record_outcomes(self) -> None:
        while self._outcomes:
            await self._ledger.append(DECISIONS, msgspec.msgpack.encode(self._outcomes[0]))
            self._outcomes.pop(0)

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
        wish = await self._decide(state, request.role, request.drain, "person")
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
