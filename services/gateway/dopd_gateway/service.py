"""`Gateway`: the token side. Owns the waiting queue, asks the policy, places work, collects tokens, mends what breaks.

Consumes `Inbound` requests, worker states and token batches; produces `Piece` streams, work, aborts, windows.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from dopd.bus import Bus, Delivery, Subscription
from dopd.cluster import ClusterView
from dopd.config import GatewayConfig
from dopd.errors import BadRequest, BusError, DeadlineExceeded, PayloadTooLarge, RequestError, Unavailable, error_from
from dopd.obs.log import get_logger
from dopd.policy.base import Dispatch, Policy
from dopd.runtime.clock import Runtime
from dopd_gateway import core, placing
from dopd_gateway.core import Request
from dopd_gateway.fleet import Fleet
from dopd_gateway.stream import Inbound, Piece
from dopd_gateway.windows import Windows
from dopd_proto.request import (
    Abort,
    BatchTag,
    DecodeWork,
    PrefillWork,
    Resend,
    ResendReply,
    Run,
    RunEnd,
    Segment,
    TokenBatch,
    WorkReply,
)
from dopd_proto.subjects import (
    ABORT,
    ARRIVALS,
    DECODE_WORK,
    GATEWAY_STATE,
    OUTCOMES,
    PREFILL_WORK,
    RESEND,
    TOKENS,
    WORKER_STATE,
)
from dopd_proto.telemetry import GatewayState, WorkerState

Work = PrefillWork | DecodeWork


class Stream:
    """The client's end of a request."""

    def __init__(self, gateway: "Gateway", request: Request) -> None:
        self.request_id = request.request_id
        self.request = request
        self._gateway = gateway
        self._events: asyncio.Queue[Piece | RequestError] = asyncio.Queue()

    def put(self, event: Piece | RequestError) -> None:
        """Hand a piece, or the error that ends the stream, to the reader."""
        self._events.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            event = await self._events.get()
            if isinstance(event, RequestError):
                raise event
            yield event
            if event.end is not None:
                return

    def cancel(self) -> None:
        self._gateway.cancel(self.request)


class Gateway:
    """One gateway process' requests."""

    def __init__(
        self, gateway_id: str, policy: Policy, bus: Bus, runtime: Runtime, config: GatewayConfig, model: str
    ) -> None:
        self.gateway_id = gateway_id
        self.incarnation = runtime.new_id(gateway_id)
        self.model = model
        self.fleet = Fleet(gateway_id, self.incarnation)
        self._bus, self._runtime, self._config = bus, runtime, config
        self._scheduler = policy.scheduler()
        self._state: Any = self._scheduler.initial()
        self._requests: dict[str, Request] = {}
        self._streams: dict[str, Stream] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._waiting: dict[str, Request] = {}
        self._peers: dict[str, float] = {}
        self._echo_s = runtime.now()
        self._windows = Windows(gateway_id, self.incarnation, runtime.now())
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._round: asyncio.Handle | None = None
        self._call: asyncio.TimerHandle | None = None
        self._log = get_logger().bind(gateway_id=gateway_id)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen and say so."""
        self._subscriptions = [
            await self._bus.subscribe(TOKENS.at(gateway_id=self.gateway_id), self._on_tokens),
            await self._bus.subscribe(WORKER_STATE.at(), self._on_worker),
            await self._bus.subscribe(GATEWAY_STATE.at(), self._on_peer),
        ]
        self._spawn(self._beat())
        self._spawn(self._count())

    async def stop(self) -> None:
        """End what is left with a retryable error, and free it on the workers."""
        for request in list(self._requests.values()):
            self._fail(request, Unavailable("the gateway is stopping"))
        self.crash()
        for subscription in self._subscriptions:
            await subscription.stop()

    def crash(self) -> None:
        """Vanish as after SIGKILL: for fault runs in one process."""
        for timer in self._timers.values():
            timer.cancel()
        for handle in (self._round, self._call):
            if handle is not None:
                handle.cancel()
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the text side's view -----------------------------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        """The shortest context of the known workers, 0 while none is known."""
        return min((k.state.max_model_len for k in self.fleet.workers.values()), default=0)

    def ready(self) -> bool:
        return any(known.serving() for known in self.fleet.workers.values())

    def open(self, inbound: Inbound) -> Stream:
        if len(self._waiting) >= self._config.max_waiting:
            raise Unavailable(f"{len(self._waiting)} requests wait already")
        now_s = self._runtime.now()
        request = Request(self._runtime.new_id("req"), inbound, now_s)
        stream = Stream(self, request)
        self._requests[request.request_id], self._streams[request.request_id] = request, stream
        self._windows.arrived(len(inbound.tokens), inbound.sampling.max_tokens)
        self._timers[request.request_id] = asyncio.get_running_loop().call_at(
            self._runtime.loop_time(inbound.deadline_s), self._overdue, request
        )
        self._wait(request)
        return stream

    def cancel(self, request: Request) -> None:
        """The client has gone."""
        if not request.ended:
            self._void(request)
            self._end(request, completed=False)

    # --- schedule -----------------------------------------------------------------------------------------------

    def _wait(self, request: Request) -> None:
        self._waiting[request.request_id] = request
        self._soon()

    def _soon(self) -> None:
        """One round for all that happens in one turn of the loop."""
        if self._round is None and self._waiting:
            self._round = asyncio.get_running_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        self._round = None
        if not self._bus.connected:
            return  # nothing would arrive; the first worker that is heard again begins a new round
        # In the order of arrival: a request that comes back for another attempt does not queue again.
        queue = sorted(self._waiting.values(), key=lambda request: request.arrived_s)
        cluster = self.cluster()
        now_s = self._runtime.now()
        self._state, dispatches, again_s = self._scheduler.step(
            self._state, [core.view(request) for request in queue], cluster, now_s
        )
        for dispatch in dispatches:
            self._dispatch(dispatch, cluster)
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if again_s is not None and self._waiting:
            when_s = self._runtime.loop_time(max(again_s, now_s + 1e-4))
            self._call = asyncio.get_running_loop().call_at(when_s, self._soon)

    def cluster(self) -> ClusterView:
        """What the policy sees."""
        unfetched: dict[str, int] = {}
        for request in self._requests.values():
            if request.unfetched:
                known = self.fleet.workers.get(request.slip[0].worker_id)
                domain = known.state.kv_domain if known else ""
                unfetched[domain] = unfetched.get(domain, 0) + (request.slip[0].stop or 0)
        longest = max((request.total_tokens for request in self._waiting.values()), default=0)
        room = placing.kv_room(
            self.fleet.store_tokens(), self._config.kv_budget_share, unfetched, len(self._peers) or 1, longest
        )
        return self.fleet.view(room, {})

    def _dispatch(self, dispatch: Dispatch, cluster: ClusterView) -> None:
        tags = (
            placing.batch_tags(dispatch, self._runtime.new_id("batch"))
            if dispatch.together or dispatch.exclusive
            else {}
        )
        for placement in dispatch.placements:
            request = self._waiting.get(placement.request_id)
            slip = placing.slip_of(placement, cluster)
            if request is None or slip is None:
                self._log.error("dispatch_invalid", request_id=placement.request_id)
                continue
            del self._waiting[request.request_id]
            self._place(request, slip, tags.get(placement.request_id), cluster)

    def _place(self, request: Request, slip: tuple[Segment, ...], tag: BatchTag | None, cluster: ClusterView) -> None:
        request.attempt += 1
        request.slip, request.stage, request.stash = slip, 0, []
        request.placed_tokens, request.heard_s = request.total_tokens, self._runtime.now()
        request.unfetched = len(slip) > 1
        request.unsettled = {}
        for place, segment in enumerate(slip):
            tokens = request.total_tokens - request.kv_tokens if place == 0 else 0
            request.unsettled[segment.worker_id] = tokens
            self.fleet.placed(segment.worker_id, tokens)
        any_role = placing.out_of_role(slip, cluster)
        work = core.work_of(request, (self.gateway_id, self.incarnation), tag, any_role)
        self._spawn(self._send(request, work))

    async def _send(self, request: Request, work: Work) -> None:
        """Offer the work; on anything but "accepted" the request waits again."""
        attempt, worker_id = work.attempt, work.segment.worker_id
        reply: WorkReply | None = None
        timed_out = False
        try:
            subject: Any = PREFILL_WORK if isinstance(work, PrefillWork) else DECODE_WORK
            reply = await self._bus.request(
                subject.at(worker_id=worker_id), work, (WorkReply,), self._config.work_timeout_s
            )
        except PayloadTooLarge as error:
            self._fail(request, error)
            return
        except (BusError, RequestError) as error:
            timed_out = True
            self._log.info("work_not_delivered", request_id=work.request_id, worker_id=worker_id, error=repr(error))
        if request.ended or request.attempt != attempt or worker_id not in request.unsettled:
            return  # void, or its tokens came before the answer
        if reply is not None and reply.accepted:
            self._settle(request, worker_id, received=True)
            return
        self.fleet.refused(worker_id, reply)
        if reply is not None and reply.reason == "invalid":
            self._fail(request, BadRequest(reply.message))
            return
        if timed_out:
            self._void(request)  # it may have arrived after all
        self._again(request, worker_id)

    # --- tokens -------------------------------------------------------------------------------------------------

    def _on_tokens(self, delivery: Delivery[TokenBatch]) -> None:
        batch = delivery.message
        hole = self.fleet.batch_came(batch.worker_id, batch.incarnation, batch.seq)
        for run in batch.runs:
            self._on_run(run, batch.worker_id, batch.incarnation)
        if hole:
            self._missed_batch(batch.worker_id, batch.incarnation)

    def _on_run(self, run: Run, worker_id: str, incarnation: str) -> None:
        request = self._requests.get(run.request_id)
        if request is None or run.attempt != request.attempt or not request.knows(worker_id, incarnation):
            self._on_void_run(run, worker_id)
            return
        request.heard_s = self._runtime.now()
        self._settle(request, worker_id, received=True)
        taken = core.take(request, run, worker_id, incarnation)
        if taken.gap:
            self._ask_again(request)
            return
        if taken.piece is not None:
            self._streams[request.request_id].put(taken.piece)
        if taken.end is not None:
            self._on_end(request, taken.end, run)
        later = core.due(request)
        if later is not None:
            self._on_run(*later)

    def _on_void_run(self, run: Run, worker_id: str) -> None:
        """A late word of an attempt that is void; who goes on with it has not heard so."""
        if run.end is None:
            self._bus.publish(ABORT.at(worker_id=worker_id), Abort(request_id=run.request_id, attempt=run.attempt))

    def _on_end(self, request: Request, end: RunEnd, run: Run) -> None:
        if end in ("stop", "length"):
            self._end(request, completed=True)
        elif end == "handed_over":
            request.stage = len(request.slip) - 1
            self._settle(request, request.slip[-1].worker_id, received=True)
        elif end in ("open", "migrated"):
            # What has been computed is in the KV store; only a place to go on is needed.
            request.kv_tokens = core.stored_tokens(request, end)
            self._wait_again(request)
        else:
            failure = error_from(run.failure) if run.failure is not None else Unavailable(f"the attempt {end}")
            self._lost(request, failure)

    # --- mend ---------------------------------------------------------------------------------------------------

    def _ask_again(self, request: Request) -> None:
        if not request.asking:
            request.asking = True
            self._spawn(self._resend(request))

    async def _resend(self, request: Request) -> None:
        """Hear from the slip's workers how far they are; a new attempt when the tokens, or the work, are gone."""
        attempt, index = request.attempt, len(request.output)
        gone: set[str] = set()
        try:
            for segment in request.slip:
                has_it = await self._recall(request, segment, index)
                if request.ended or request.attempt != attempt or not request.slip or len(request.output) > index:
                    return
                if has_it is False:
                    gone.add(segment.worker_id)
        finally:
            request.asking = False
            request.heard_s = self._runtime.now()
        holder = request.holder()
        needed = {s.worker_id for s in request.slip} if request.stash else {holder.worker_id} if holder else set()
        if needed <= gone:
            self._void(request)
            self._lost(request, Unavailable("tokens were lost"))

    async def _recall(self, request: Request, segment: Segment, index: int) -> bool | None:
        """Take what this worker has from `index` on. False when it has nothing of it, None when it cannot say."""
        if not self.fleet.knows(segment.worker_id, segment.incarnation):
            return False
        ask = Resend(gateway_id=self.gateway_id, request_id=request.request_id, attempt=request.attempt, index=index)
        to = RESEND.at(worker_id=segment.worker_id)
        try:
            reply = await self._bus.request(to, ask, (ResendReply,), self._config.resend_timeout_s)
        except (BusError, RequestError):
            return None
        if reply.run is None:
            return False
        self._on_run(reply.run, segment.worker_id, segment.incarnation)
        return bool(reply.run.tokens) or reply.run.end is None

    def _again(self, request: Request, avoid: str) -> None:
        """The work was not taken: to the queue again, elsewhere if possible."""
        self._release(request)
        request.avoid = request.avoid | {avoid}
        request.slip = ()
        self._wait(request)

    def _wait_again(self, request: Request) -> None:
        """Ended on its worker in good order, to go on elsewhere."""
        self._release(request)
        self._void(request)  # a hand-over that was given up may have arrived after all
        request.avoid = frozenset()
        request.slip = ()
        self._wait(request)

    def _lost(self, request: Request, error: RequestError) -> None:
        """The attempt failed: a new one with the tokens so far as input, or the end."""
        self._release(request)
        holder = request.holder()
        request.failures += 1
        if request.failures >= self._config.max_attempts:
            self._fail(request, error)
            return
        request.avoid = frozenset({holder.worker_id}) if holder else frozenset()
        request.kv_tokens, request.slip = 0, ()
        self._log.info("attempt_lost", request_id=request.request_id, attempt=request.attempt, reason=error.message)
        self._wait(request)

    def _on_worker(self, delivery: Delivery[WorkerState]) -> None:
        state = delivery.message
        dead = self.fleet.heard(state, self._runtime.now())
        if dead is not None:
            self._worker_lost(state.worker_id, dead)
        if self.fleet.batch_overdue(state.worker_id):
            self._missed_batch(state.worker_id, state.incarnation)
        self._soon()

    def _missed_batch(self, worker_id: str, incarnation: str) -> None:
        """The worker sent more than came: ask for every request that it holds."""
        for request in list(self._requests.values()):
            if request.knows(worker_id, incarnation):
                self._ask_again(request)

    def _worker_lost(self, worker_id: str, incarnation: str) -> None:
        for request in list(self._requests.values()):
            holder = request.holder()
            if holder is not None and holder.worker_id == worker_id and holder.incarnation == incarnation:
                self._void(request)
                self._lost(request, Unavailable(f"worker {worker_id} was lost"))

    def _on_peer(self, delivery: Delivery[GatewayState]) -> None:
        self._peers[delivery.message.gateway_id] = self._runtime.now() + delivery.message.lease_s
        if delivery.message.incarnation == self.incarnation:
            self._echo_s = self._runtime.now()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _overdue(self, request: Request) -> None:
        self._void(request)
        self._fail(request, DeadlineExceeded(f"not finished in time, {len(request.output)} tokens were made"))

    def _void(self, request: Request) -> None:
        """Whoever works on the present attempt stops."""
        for segment in request.slip:
            abort = Abort(request_id=request.request_id, attempt=request.attempt)
            self._bus.publish(ABORT.at(worker_id=segment.worker_id), abort)

    def _fail(self, request: Request, error: RequestError) -> None:
        if not request.ended:
            self._streams[request.request_id].put(error)
            self._void(request)
            self._end(request, completed=False)

    def _end(self, request: Request, completed: bool) -> None:
        request.ended = True
        self._release(request)
        self._waiting.pop(request.request_id, None)
        self._requests.pop(request.request_id, None)
        self._streams.pop(request.request_id, None)
        timer = self._timers.pop(request.request_id, None)
        if timer is not None:
            timer.cancel()
        self._windows.left(request, completed)
        self._soon()

    def _settle(self, request: Request, worker_id: str, received: bool) -> None:
        tokens = request.unsettled.pop(worker_id, None)
        if tokens is not None:
            incarnation = next(s.incarnation for s in request.slip if s.worker_id == worker_id)
            self.fleet.settled(worker_id, incarnation, tokens, received)

    def _release(self, request: Request) -> None:
        """Give back the credit of workers that never got the work."""
        request.unfetched = False
        for worker_id in list(request.unsettled):
            self._settle(request, worker_id, received=False)

    # --- heartbeat ----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            self._look_around()
            state = GatewayState(
                gateway_id=self.gateway_id,
                incarnation=self.incarnation,
                sent_s=self._runtime.now(),
                lease_s=self._config.lease_s,
                waiting=len(self._waiting),
                running=len(self._requests) - len(self._waiting),
            )
            self._bus.publish(GATEWAY_STATE.at(gateway_id=self.gateway_id), state)
            await asyncio.sleep(self._config.heartbeat_s)

    def _look_around(self) -> None:
        now_s = self._runtime.now()
        self._peers = {peer: until_s for peer, until_s in self._peers.items() if until_s > now_s}
        if not self._bus.connected:
            return
        # Others' silence counts up to our own last heartbeat that came back: then the broker, and we, were awake.
        # Whoever lost the connection as we did gets a lease to come back.
        if self._runtime.loop_time(self._echo_s) - self._bus.connected_since_s > self._config.lease_s:
            for known in self.fleet.lapsed(self._echo_s):
                self._log.warning("worker_lost", worker_id=known.state.worker_id)
                self._worker_lost(known.state.worker_id, known.state.incarnation)
        for request in list(self._requests.values()):
            if request.doubtful(now_s, self._config.lease_s):
                self._ask_again(request)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(self._config.window_s)
            now_s = self._runtime.now()
            arrivals, outcomes = self._windows.close(now_s)
            self._windows = Windows(self.gateway_id, self.incarnation, now_s)
            self._bus.publish(ARRIVALS.at(gateway_id=self.gateway_id), arrivals)
            self._bus.publish(OUTCOMES.at(gateway_id=self.gateway_id), outcomes)
