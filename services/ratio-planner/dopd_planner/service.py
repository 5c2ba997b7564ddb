"""`RatioPlanner`: rounds of compare and command, under a ledger lease.

Consumes worker states, forecasts and people's wishes; produces `RoleChange` commands and decision records. Without the
ledger it holds all roles and says so: a second planner might be leading.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from dopd.bus import Bus, Delivery, Subscription
from dopd.config import PlannerConfig
from dopd.errors import Conflict, LedgerLost
from dopd.ledger import Lease, Ledger
from dopd.obs.log import get_logger
from dopd.obs.telemetry import Begun, Tracing, begin
from dopd.policy.base import Plan, Planner
from dopd.runtime.clock import Runtime
from dopd.slo import Slo
from dopd_planner import core, history
from dopd_planner.core import Wish
from dopd_planner.heard import Heard
from dopd_planner.history import History
from dopd_planner.lead import Lead
from dopd_planner.people import People, Refused
from dopd_planner.pins import Pins
from dopd_planner.wishes import Wishes
from dopd_proto.base import DrainMode, Role
from dopd_proto.control import Change, ChangeOutcome, DecisionRecord
from dopd_proto.subjects import FORECAST, GATEWAY_STATE, ROLE_CHANGE, WORKER_STATE
from dopd_proto.telemetry import Forecast, GatewayState, WorkerState

LISTENING = Plan({}, reason=history.LISTENING, needs="time to hear all workers; they are given one lease")


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
        on_written: Callable[[DecisionRecord | ChangeOutcome], None] = lambda entry: None,
        tracing: Tracing | None = None,
    ) -> None:
        """`on_written` hears of every entry of the ledger's log that this planner has made."""
        self.planner_id = runtime.new_id(planner_id)
        self._bus, self._ledger, self._runtime, self._config, self._slo = bus, ledger, runtime, config, slo
        self._planner, self._on_written, self._tracing = planner, on_written, tracing
        self._plan_state: Any = planner.initial() if planner is not None else None
        self.heard, self.wishes, self.pins = Heard(runtime), Wishes(self.planner_id, tracing), Pins(ledger)
        self.history = History()
        self.planned: Plan | None = None
        self._under_way: list[tuple[DecisionRecord, Change]] = []
        self.lead = Lead(ledger, bus, self.planner_id, config.lease_s)
        self._failed = ""
        self.hears_ledger = False
        self._people = People(self, bus, runtime, config)
        self._subscriptions: list[Subscription] = []
        self._round: asyncio.Task[None] | None = None
        self._deciding = asyncio.Lock()
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

    async def ended(self) -> None:
        """Wait until the rounds are over, which they never are by themselves. Raises what has ended them."""
        assert self._round is not None, "it was started"
        await self._round

    async def stop(self) -> None:
        """Give the lease back, so that another may lead at once."""
        self.crash()
        for subscription in self._subscriptions:
            await subscription.stop()
        await self._people.close()
        await self.lead.release()
        await self._ledger.close()

    def crash(self) -> None:
        """Vanish as after SIGKILL."""
        if self._round is not None:
            self._round.cancel()

    @property
    def leading(self) -> bool:
        """Whether this planner may command now."""
        return self.lead.lease is not None

    # --- what is heard ------------------------------------------------------------------------------------------

    def _on_state(self, delivery: Delivery[WorkerState]) -> None:
        if self.heard.worker(delivery.message):
            self.wishes.saw(self.heard.last(delivery.message.worker_id))
            self._people.heard_news()

    def _on_forecast(self, delivery: Delivery[Forecast]) -> None:
        self.heard.forecasts(delivery.message)

    def _on_gateway(self, delivery: Delivery[GatewayState]) -> None:
        self.heard.gateway(delivery.message)

    # --- rounds -------------------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        while True:
            try:
                await self._one_round()
                self.hears_ledger = True
            except LedgerLost as error:
                self.hears_ledger = False
                if self.leading:
                    self._log.error("ledger_lost", detail=str(error))
                await self._lead(None)
            except Conflict:
                self._log.info("lease_contended")
            await asyncio.sleep(self._config.round_s)

    async def _one_round(self) -> None:
        self.lead.note_round()
        await self._lead(await self.lead.asked())
        if not self.leading:
            return
        if self.lead.listened:
            await self._compare(self.heard.live())
        elif self._planner is not None:
            await self._decide([], "plan", LISTENING)
        for wish in self.wishes:
            self._command(wish)
        await self._record_outcomes()

    async def _compare(self, states: Mapping[str, WorkerState]) -> None:
        """Give up wishes that cannot come true, and decide what differs from what is wanted: first what mends an empty
        pool, then people's pins, then the policy's plan, and never two things for one worker."""
        self._resume(states)
        self.wishes.expire(states, self._runtime.now())
        plan = self._plan(states)
        roles: dict[str, dict[str, Role]] = {"repair": core.repair(states, self.pins.roles, self.wishes.leaving())}
        roles["pin"] = self.pins.roles
        roles["plan"] = dict(plan.roles) if plan is not None else {}
        for why, wanted in roles.items():
            free = {w: role for w, role in wanted.items() if why == "pin" or w not in self.pins.roles}
            async with self._deciding:
                changes, refused = core.due(states, self.wishes.leaving(), free)
                if changes or (why == "plan" and plan is not None):
                    await self._decide(changes, why, plan if why == "plan" else None, refused)

    def _resume(self, states: Mapping[str, WorkerState]) -> None:
        """Take up what an earlier leader has decided and not seen come true, instead of deciding it again."""
        for record, change in self._under_way:
            wish = core.wish_of(record, change)
            if self.wishes.is_done(wish, states.get(change.worker_id), self._runtime.now()):
                continue
            self.wishes.add(replace(wish, epoch=self.lead.next_epoch()), self._runtime.now())
            self._log.info("role_change_resumed", worker_id=wish.worker_id, role=wish.role)
        self._under_way = []

    async def _lead(self, lease: Lease | None) -> None:
        """Begin or end to lead. Only the leader answers people."""
        if lease is not None and self.lead.begins(lease):
            await self.pins.load()
            self.history = await history.recall(self._ledger)
            self._under_way = list(self.history.under_way())
            self.wishes.clear()
            self._log.info("planner_leads", term=lease.term)
        self.lead.take(lease)
        if lease is not None:
            await self._people.open()
        else:
            self.planned = None
            await self._people.close()

    def _plan(self, states: Mapping[str, WorkerState]) -> Plan | None:
        """The policy's word on the cluster as it will be when all commands are obeyed; None where it moves nobody."""
        if self._planner is None:
            return None
        view = self.heard.view(states, self.pins.roles, self.wishes.leaving())
        now_s = self._runtime.now()
        try:
            self._plan_state, plan = self._planner.plan(self._plan_state, self.heard.expected(), view, self._slo, now_s)
        except Exception as error:  # a policy may be anybody's: roles are held, repair and pins go on
            plan = Plan({}, reason="policy_failed", needs=f"a policy that does not raise {type(error).__name__}")
            if self._failed != plan.needs:
                self._log.error("policy_failed", exc_info=True)
            self._failed = plan.needs
        self.planned = plan
        return plan

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
        term, now_s = self.lead.term, self._runtime.now()
        wishes = [
            Wish(
                worker_id=state.worker_id, incarnation=state.incarnation, role=role, drain=drain,
                epoch=self.lead.next_epoch(), decision_id="", sent_s=now_s,
                deadline_s=now_s + self._config.command_timeout_s,
            )
            for state, role in changes
        ]  # fmt: skip
        made = tuple(wish.change(state.role) for wish, (state, _) in zip(wishes, changes, strict=True))
        record = self._record(term, why, plan, (*made, *refused))
        if (not made or (self._config.dry_run and why != "person")) and not self.history.is_news(record):
            return []
        decision_id = self._runtime.new_id("decision")
        about = {"dopd.decision_id": decision_id, "dopd.why": why, "dopd.reason": record.reason}
        cause = record.forecast.traceparent if record.forecast is not None else ""
        span = begin(self._tracing, Begun("decision", record.at_s, about), cause)
        record = msgspec.structs.replace(record, decision_id=decision_id, traceparent=span.traceparent)
        await self._write(record)
        span.end(self._runtime.now())
        wishes = [replace(wish, decision_id=decision_id, traceparent=span.traceparent) for wish in wishes]
        for wish in wishes:
            self._log.info(
                "role_change_decided", worker_id=wish.worker_id, role=wish.role, drain=drain, why=why,
                reason=record.reason, decision_id=wish.decision_id,
            )  # fmt: skip
            if not self._config.dry_run:
                self._command(self.wishes.add(wish, self._runtime.now()))
        return wishes

    def _record(self, term: int, why: str, plan: Plan | None, changes: tuple[Change, ...]) -> DecisionRecord:
        record = history.draft(
            why, plan or Plan({}, reason=why), changes, self.heard.forecast if why == "plan" else None
        )
        prefill, decode = core.serving(self.heard.live(), self.wishes.leaving())
        return msgspec.structs.replace(
            record, at_s=self._runtime.now(), term=term, prefill=prefill, decode=decode,
            dry_run=self._config.dry_run, planner_id=self.planner_id,
        )  # fmt: skip

    def _command(self, wish: Wish) -> None:
        self._bus.publish(ROLE_CHANGE.at(worker_id=wish.worker_id), wish.command(self.heard.ahead_s(wish.worker_id)))

    async def _record_outcomes(self) -> None:
        while self.wishes.outcomes:
            await self._write(self.wishes.outcomes[0])
            del self.wishes.outcomes[0]

    async def _write(self, entry: DecisionRecord | ChangeOutcome) -> None:
        await history.write(self._ledger, entry)
        self.history.add(entry)
        self._on_written(entry)

    async def change_for_person(self, state: WorkerState, role: Role, drain: DrainMode) -> Wish | None:
        """Pin, decide and command, whatever the plan says; None where the role is there already.

        Raises Refused, LedgerLost and Conflict.
        """
        async with self._deciding:  # else two changes at once might each count on the other worker to stay
            leaving = {w: coming for w, coming in self.wishes.leaving().items() if w != state.worker_id}
            reason = core.refusal(self.heard.live(), leaving, state.worker_id, role)
            if reason:
                raise Refused(reason, "role")
            await self.pins.pin(state.worker_id, role)
            if state.role == role and state.worker_id not in self.wishes:
                return None
            (wish,) = await self._decide([(state, role)], "person", drain=drain)
            return wish
