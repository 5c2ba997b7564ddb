"""`Worker`: one engine on the bus.

Consumes work, aborts, role changes and gateway heartbeats; produces tokens, the next segment's work, and its own state.
It decides nothing itself: role, credit, health and segment arithmetic are pure functions beside it.
"""

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from dopd.bus import Bus, Delivery, Subscription
from dopd.config import WorkerConfig
from dopd.engine.contract import Engine, JobOutput
from dopd.engine.shared_kv import SharedKv
from dopd.errors import BadRequest, BusError, RequestError
from dopd.obs.log import get_logger
from dopd.obs.telemetry import Tracing
from dopd.runtime.clock import Runtime
from dopd.worker import role, segment
from dopd.worker.credit import Account
from dopd.worker.outbox import Outbox, run_again, run_of
from dopd.worker.past import Past
from dopd.worker.segment import Held
from dopd.worker.tally import Tally
from dopd.worker.turn import Turn
from dopd.worker.vitals import Vitals
from dopd_proto.base import Role
from dopd_proto.control import RoleChange
from dopd_proto.request import (
    Abort,
    DecodeWork,
    PrefillWork,
    Resend,
    ResendReply,
    Run,
    RunEnd,
    Segment,
    Timing,
    Work,
    WorkReply,
)
from dopd_proto.subjects import ABORT, DECODE_WORK, GATEWAY_STATE, PREFILL_WORK, RESEND, ROLE_CHANGE, WORKER_STATE
from dopd_proto.telemetry import GatewayState, Phase, WorkerState

_ENDS: dict[str, RunEnd] = {"stop": "stop", "length": "length", "aborted": "aborted", "failed": "failed"}


class Worker:
    """One worker. `start` loads the engine and serves; `stop` gives back what is in hand and ends."""

    def __init__(
        self,
        worker_id: str,
        first_role: Role,
        engine: Engine,
        bus: Bus,
        runtime: Runtime,
        config: WorkerConfig,
        model: str,
        kv_domain: str = "local",
        shared: SharedKv | None = None,
        starts: Mapping[Role, float] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`starts`: seconds that the worker is away to change to a role, 0 for those that are not named."""
        self.worker_id = worker_id
        self.incarnation = runtime.new_id(worker_id)
        self.role = role.RoleState(first_role)
        self._engine, self._bus, self._runtime, self._config = engine, bus, runtime, config
        self._starts = starts or {}
        self._kv_domain, self._shared = kv_domain, shared
        self._vitals = Vitals((worker_id, self.incarnation), model, kv_domain, shared, engine, config)
        self._held: dict[str, Held] = {}
        self._turn = Turn(worker_id, tracing)
        self.tally = Tally()
        self.said: WorkerState | None = None
        self._past = Past(config.resend_buffer_s)
        self._ended, self._void = self._past.ended, self._past.void
        self._accounts: dict[str, Account] = {}
        self._state_to = WORKER_STATE.at(worker_id=worker_id)
        self._outbox = Outbox(bus, worker_id, self.incarnation, self._accounts)
        self._phase: Phase = "starting"
        self._echo_s = 0.0
        self._missed = 0
        self._said_held = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._log = get_logger().bind(worker_id=worker_id)
        self._emptied = asyncio.Event()
        self._emptied.set()
        self.failed = asyncio.Event()

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Say "starting", load the engine, then take work. Raises EngineError."""
        me, bus = self.worker_id, self._bus
        self._spawn(self._beat())
        if self._shared is not None:
            self._spawn(self._shared.watch())
        await self._engine.start(self._on_output)
        self._subscriptions = [
            await bus.subscribe(GATEWAY_STATE.at(), self._on_gateway),
            await bus.subscribe(self._state_to, self._on_echo),
            await bus.subscribe(ROLE_CHANGE.at(worker_id=me), self._on_role_change),
            await bus.subscribe(ABORT.at(worker_id=me), self._on_abort),
            await bus.serve(RESEND.at(worker_id=me), self._on_resend),
            await bus.serve(PREFILL_WORK.at(worker_id=me), self._on_work),
            await bus.serve(DECODE_WORK.at(worker_id=me), self._on_work),
        ]
        self._phase = "serving"
        self._say()
        self._log.info("worker_started", role=self.role.role, incarnation=self.incarnation)

    async def stop(self) -> None:
        """Refuse new work, give what is in hand time to end, hand the rest back, end the engine."""
        self._phase = "stopping"
        self._say()
        try:
            async with asyncio.timeout(self._config.stop_grace_s):
                await self._idle()
        except TimeoutError:
            self._give_back(set(self._held))
        for subscription in self._subscriptions:
            await subscription.stop()
        await self._engine.stop()
        self._outbox.flush()
        self._quit()
        self._log.info("worker_stopped")

    @property
    def held(self) -> Collection[Held]:
        """The segments in hand."""
        return self._held.values()

    async def _idle(self) -> None:
        while self._held:
            await self._emptied.wait()

    def crash(self) -> None:
        """Vanish as after SIGKILL: for fault runs in one process."""
        self._quit()

    def _quit(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- work comes in ------------------------------------------------------------------------------------------

    async def _on_work(self, work: Work) -> WorkReply:
        reason, message = self._refusal(work)
        if reason:
            return self._reply(reason, message)
        job_id = segment.job_id_of(work)
        if job_id not in self._held and job_id not in self._ended:
            try:
                held = segment.hold(work)
                held.timing = Timing(received_s=self._runtime.now())
                self._held[job_id] = held
                self._emptied.clear()
                self._engine.submit(segment.job_of(held, self._kv_domain))
            except (BadRequest, ValueError, OverflowError) as error:
                self._held.pop(job_id, None)
                return self._reply("invalid", str(error))
            self.tally.began(held.timing.received_s or 0.0)
            self._accounts[work.gateway_id].received += 1
            self._said_held += 1  # what was granted and has come: `_settle` counts what has ended since
        return self._reply("")

    def _refusal(self, work: Work) -> tuple[Any, str]:
        if work.segment.incarnation != self.incarnation:
            return "incarnation", f"this is {self.incarnation}"
        if self._runtime.now() > work.deadline_s:
            return "deadline", "the request's time is up"
        if self._phase in ("stopping", "failed"):
            return "draining", f"the worker is {self._phase}"
        if self._past.is_void(work.request_id, work.attempt):
            return "stale", "the attempt was aborted"
        kind: role.Kind = "prefill" if isinstance(work, PrefillWork) else "decode"
        reason = role.refusal(self.role, kind, work.segment.epoch, work.any_role)
        if reason:
            return reason, f"the role is {self.role.role}"
        account = self._accounts.get(work.gateway_id)
        if account is None:
            self._meet(work.gateway_id, work.gateway_incarnation, self._config.lease_s, sent_s=0.0)
        elif account.incarnation != work.gateway_incarnation:
            return "stale", "the gateway has been started anew"  # its own word counts, not that of a late hand-over
        return "", ""

    def _reply(self, reason: Any, message: str = "") -> WorkReply:
        state = self.role
        if reason:
            self.tally.refused[reason] += 1
        return WorkReply(accepted=not reason, role=state.role, epoch=state.epoch, reason=reason, message=message)

    def _on_abort(self, delivery: Delivery[Abort]) -> None:
        abort = delivery.message
        self._past.abort(abort.request_id, abort.attempt, self._runtime.now())
        for held in [h for h in self._held.values() if h.work.request_id == abort.request_id]:
            if held.work.attempt <= abort.attempt:
                self._engine.abort(held.job_id)

    async def _on_resend(self, resend: Resend) -> ResendReply:
        run: Run | None = None
        for kind in "dp":
            job_id = f"{resend.request_id}.{resend.attempt}.{kind}"
            ended = self._ended.get(job_id)
            held, end = (ended.held, ended.end) if ended else (self._held.get(job_id), None)
            if held is not None and held.index <= resend.index <= held.index + len(held.made):
                run = run_again(held, resend.index, end)
                break
        return ResendReply(run=run)

    # --- tokens go out ------------------------------------------------------------------------------------------

    def _on_output(self, outputs: Sequence[JobOutput]) -> None:
        """Called by the engine once per step."""
        for output in outputs:
            held = self._held.get(output.job_id)
            if held is not None:
                self._take(held, output)
        self._outbox.flush()
        self._settle()

    def _take(self, held: Held, output: JobOutput) -> None:
        if output.cached is not None:
            held.started = True
            far = segment.is_far(held.work, self._kv_domain)
            self.tally.looked(len(held.input_tokens), output.cached, far=far)
        held.made += output.tokens
        held.times_s += output.times_s
        if output.logprobs:
            held.logprobs += output.logprobs
        missed = self._missed_tokens(held, output)
        end = self._end_of(held, output)
        if end is not None and end != "handed_over":
            self._close(held, end)
        # A hand-over is reported when the other side has taken the work.
        over = end in ("handed_over", "open", "migrated")
        timing = segment.timing_of(held, output.cached, self._runtime.now() if over else None)
        run = run_of(held, output, None if end == "handed_over" else end, missed, timing)
        self._outbox.add(held.work.gateway_id, run)
        if end == "handed_over":
            self._spawn(self._hand_over(held))

    def _end_of(self, held: Held, output: JobOutput) -> RunEnd | None:
        """What the end of an engine job means for the request; "handed_over" is still to be tried."""
        if output.end is None:
            return None
        if output.end == "aborted" and held.giving_back:
            return "migrated"
        if output.end == "length" and not segment.complete(held):
            slip = held.work.then if isinstance(held.work, PrefillWork) else None
            return "handed_over" if slip is not None else "open"
        return _ENDS[output.end]

    def _missed_tokens(self, held: Held, output: JobOutput) -> int:
        if output.cached is None or not held.work.kv_tokens:
            return 0
        chunk = self._engine.chunk_tokens
        promised = min(held.work.kv_tokens // chunk * chunk, len(held.input_tokens) - 1)
        missed = max(0, promised - output.cached.local_tokens - output.cached.store_tokens)
        if missed:
            self._missed += 1
            self._log.warning("kv_missed", request_id=held.work.request_id, missed_tokens=missed, promised=promised)
        return missed

    async def _hand_over(self, held: Held) -> None:
        """Give the second segment to the worker of the slip, or leave it to the gateway."""
        assert isinstance(held.work, PrefillWork) and held.work.then is not None
        target = held.work.then
        work = segment.next_work(held, target, self._kv_domain)
        end: RunEnd = "handed_over" if await self._offer(work, target) else "open"
        if held.job_id in self._held:
            self._close(held, end)
            if end == "handed_over":
                held.timing = replace(held.timing, accepted_s=self._runtime.now())
            run = Run(
                request_id=held.work.request_id,
                attempt=held.work.attempt,
                index=held.index + len(held.made),
                end=end,
                timing=held.timing,
            )
            self._outbox.add(held.work.gateway_id, run)
            self._outbox.flush()
            self._settle()

    async def _offer(self, work: DecodeWork, target: Segment) -> bool:
        if target.worker_id == self.worker_id:
            return (await self._on_work(work)).accepted
        timeout_s = min(self._config.lease_s, max(0.01, work.deadline_s - self._runtime.now()))
        try:
            reply = await self._bus.request(DECODE_WORK.at(worker_id=target.worker_id), work, (WorkReply,), timeout_s)
        except (BusError, RequestError) as error:
            self._log.info("handover_failed", request_id=work.request_id, to=target.worker_id, error=str(error))
            return False
        return reply.accepted

    def _close(self, held: Held, end: RunEnd) -> None:
        self._held.pop(held.job_id, None)
        self.tally.closed(held, end)
        self._past.close(held, end, self._runtime.now())

    # --- roles --------------------------------------------------------------------------------------------------

    def _on_role_change(self, delivery: Delivery[RoleChange]) -> None:
        command = delivery.message
        if command.incarnation != self.incarnation or self._phase != "serving":
            return
        before, now_s = self.role, self._runtime.now()
        self.role = role.change(before, command, bool(self._held), now_s, self._starts.get(command.role, 0.0))
        if self.role is before:
            self._say()  # a repeated command asks for the read-back again
            return
        self.tally.role_changes += 1
        self._turn.commanded(command, now_s)
        self._log.info("role_changed", role=command.role, drain=command.drain, epoch=command.epoch)
        if command.drain == "migrate" and command.role != before.role:
            self._give_back({job_id for job_id, held in self._held.items() if held.kind != command.role})
        self._settle()
        self._say()

    def _give_back(self, job_ids: set[str]) -> None:
        """End these at the next token boundary; the gateway places them elsewhere."""
        for job_id in sorted(job_ids):
            self._held[job_id].giving_back = True
            self._engine.abort(job_id)

    def _settle(self) -> None:
        before = self.role
        if before.draining:
            start_s = self._starts.get(before.next_role, 0.0) if before.next_role else 0.0
            self.role = role.settle(before, {held.kind for held in self._held.values()}, self._runtime.now(), start_s)
        if self.role is not before and not self.role.draining:
            self._log.info("role_drained", role=self.role.role, epoch=self.role.epoch)
        self._turn.saw(self.role)
        idle = not self._held and not self._emptied.is_set()
        if idle:
            self._emptied.set()
            self.tally.idle(self._runtime.now())
        # Neither a worker without work nor gateways with a used-up window wait for the next heartbeat.
        freed = 2 * (self._said_held - len(self._held)) >= self._vitals.capacity(self.role.role)
        if idle or freed or self.role is not before:
            self._say()

    # --- who is there -------------------------------------------------------------------------------------------

    def _on_gateway(self, delivery: Delivery[GatewayState]) -> None:
        state = delivery.message
        self._meet(state.gateway_id, state.incarnation, state.lease_s, state.sent_s)

    def _meet(self, gateway_id: str, incarnation: str, lease_s: float, sent_s: float) -> None:
        account = self._accounts.get(gateway_id)
        expires_s = self._runtime.now() + lease_s
        if account is not None and account.incarnation == incarnation:
            account.expires_s, account.sent_s = max(account.expires_s, expires_s), max(account.sent_s, sent_s)
        elif account is None or account.sent_s <= sent_s:  # else late words of an earlier life
            if account is not None:
                self._abandon(gateway_id)
            self._accounts[gateway_id] = Account(incarnation, expires_s, sent_s)
            self._say()

    def _abandon(self, gateway_id: str) -> None:
        """A gateway has gone: nobody waits for what is done for it."""
        del self._accounts[gateway_id]
        for held in [held for held in self._held.values() if held.work.gateway_id == gateway_id]:
            self._engine.abort(held.job_id)
        self._log.info("gateway_lost", gateway_id=gateway_id)

    # --- heartbeat ----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            self._look_around()
            if self.role.ready_at_s is not None:
                self._settle()
            self._say()
            await asyncio.sleep(self._config.heartbeat_s)

    def _look_around(self) -> None:
        now_s = self._runtime.now()
        # Others' silence counts up to our own last state that came back: then the broker, and we, were awake.
        # Whoever lost the connection as we did gets a lease to come back.
        listened_s = self._runtime.loop_time(self._echo_s) - self._bus.connected_since_s
        if self._bus.connected and listened_s > self._config.lease_s:
            for gateway_id in [g for g, account in self._accounts.items() if account.expires_s < self._echo_s]:
                self._abandon(gateway_id)
        self._past.forget(now_s)

    def _on_echo(self, delivery: Delivery[WorkerState]) -> None:
        if delivery.message.incarnation == self.incarnation:
            self._echo_s = self._runtime.now()

    def _say(self) -> None:
        """Publish the state."""
        self.said = self.state()
        try:
            self._bus.publish(self._state_to, self.said)
        except BusError as error:
            self._log.warning("state_not_sent", error=str(error))

    def state(self) -> WorkerState:
        """This worker now. A dead engine ends the process; a frozen one may come back."""
        load = self._engine.load()
        if self._phase not in ("starting", "stopping") and not load.alive and not self.failed.is_set():
            self._log.error("engine_died")
            self.failed.set()
        self._said_held = len(self._held)
        held, now_s = self._held.values(), self._runtime.now()
        far_tokens = self.tally.input_tokens["far"]
        return self._vitals.state(self._phase, self.role, load, held, self._accounts, self._missed, far_tokens, now_s)
