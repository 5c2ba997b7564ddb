"""`Gateway`: the token side. Owns the waiting queue, asks the policy, places work, collects tokens.

Consumes `Inbound` requests, worker states and token batches; produces `Piece` streams, work, aborts, windows.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from operator import attrgetter
from typing import Any

from dopd.bus import Bus, Delivery, Subscription
from dopd.cluster import ClusterView
from dopd.config import GatewayConfig
from dopd.errors import (
    BadRequest,
    BusError,
    DeadlineExceeded,
    PayloadTooLarge,
    RequestError,
    TooManyRequests,
    Unavailable,
    error_from,
)
from dopd.obs.log import get_logger
from dopd.obs.telemetry import Tracing
from dopd.policy.base import Dispatch, Policy, RequestView
from dopd.runtime.clock import Runtime
from dopd_gateway import core, placing
from dopd_gateway.core import End, Request
from dopd_gateway.fleet import Fleet
from dopd_gateway.lengths import Lengths
from dopd_gateway.mend import Mend
from dopd_gateway.presence import Presence
from dopd_gateway.stream import Inbound, Stream
from dopd_gateway.timeline import Place
from dopd_proto.asked import Feature
from dopd_proto.request import (
    Abort,
    BatchTag,
    DecodeWork,
    PrefillWork,
    Run,
    RunEnd,
    Segment,
    TokenBatch,
    WorkReply,
)
from dopd_proto.subjects import ABORT, DECODE_WORK, GATEWAY_STATE, PREFILL_WORK, TOKENS, WORKER_STATE
from dopd_proto.telemetry import WorkerState

Work = PrefillWork | DecodeWork

MANY = 100
WAITING_S = 1e-5
"""A round looks at every waiting request. In an overload there may be thousands, and events come by the hundred a
second: with more than `MANY` waiting a round begins no sooner than so long, times their number, after the last."""
_ARRIVAL, _LENGTH = attrgetter("arrived_s"), attrgetter("isl_tokens")


class Gateway:
    """One gateway process' requests."""

    def __init__(
        self,
        gateway_id: str,
        policy: Policy,
        bus: Bus,
        runtime: Runtime,
        config: GatewayConfig,
        model: str,
        on_ended: Callable[[Request, End, RequestError | None], None] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`on_ended` hears of every request when it is over, with its timeline."""
        self.gateway_id = gateway_id
        self.incarnation = runtime.new_id(gateway_id)
        self.model = model
        self.fleet = Fleet(gateway_id, self.incarnation)
        self._bus, self._runtime, self._config, self._on_ended = bus, runtime, config, on_ended
        self._scheduler = policy.scheduler()
        self._states: dict[frozenset[str], Any] = {}
        self._requests: dict[str, Request] = {}
        self._streams: dict[str, Stream] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._waiting: dict[str, RequestView] = {}
        self.refused = 0
        self._lengths = Lengths()
        self._presence = Presence(gateway_id, self.incarnation, bus, runtime, config, tracing)
        self._mend = Mend(self, self._requests, bus, runtime, config)
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._round: asyncio.Handle | None = None
        self._round_s = 0.0
        self._call: asyncio.TimerHandle | None = None
        self._log = get_logger().bind(gateway_id=gateway_id)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen and say so."""
        self._subscriptions = [
            await self._bus.subscribe(TOKENS.at(gateway_id=self.gateway_id), self._on_tokens),
            await self._bus.subscribe(WORKER_STATE.at(), self._on_worker),
            await self._bus.subscribe(GATEWAY_STATE.at(), self._presence.heard),
        ]
        self.spawn(self._beat())
        self.spawn(self._count())

    async def stop(self) -> None:
        """End what is left with a retryable error, and free it on the workers."""
        for request in list(self._requests.values()):
            self.fail(request, Unavailable("the gateway is stopping"))
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

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run as a task that ends with the gateway."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def in_hand(self) -> Collection[Request]:
        """The requests that have not ended, placed or not."""
        return self._requests.values()

    @property
    def waiting(self) -> Collection[RequestView]:
        """Those of them that wait for a place."""
        return self._waiting.values()

    # --- the text side's view -----------------------------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        """The shortest context of the known workers, 0 while none is known."""
        return min((k.state.max_model_len for k in self.fleet.workers.values()), default=0)

    @property
    def features(self) -> frozenset[Feature]:
        """What every known worker's engine does: a request may come to any of them."""
        told = {known.state.features for known in self.fleet.workers.values()}  # hardly ever more than one
        return frozenset.intersection(*map(frozenset, told)) if told else frozenset()

    def ready(self) -> bool:
        return any(known.serving() for known in self.fleet.workers.values())

    def open(self, inbound: Inbound) -> Stream:
        if len(self._waiting) >= self._config.max_waiting:
            self.refused += 1
            raise TooManyRequests(f"{len(self._waiting)} requests wait already")
        now_s = self._runtime.now()
        request = Request(self._runtime.new_id("req"), inbound, now_s)
        stream = Stream(
            request.request_id,
            lambda enough: self.cancel(request, enough),
            lambda: request.timeline.phases(self._runtime.now()),
        )
        self._requests[request.request_id], self._streams[request.request_id] = request, stream
        self._presence.windows.arrived(len(inbound.tokens), inbound.sampling.max_tokens)
        self._timers[request.request_id] = asyncio.get_running_loop().call_at(
            self._runtime.loop_time(inbound.deadline_s), self._overdue, request
        )
        self.wait(request)
        return stream

    def cancel(self, request: Request, enough: bool = False) -> None:
        """The client has gone, or has enough: a stop string was found."""
        if not request.ended:
            self.void(request)
            self._end(request, "stop" if enough else "cancelled")

    # --- schedule -----------------------------------------------------------------------------------------------

    def wait(self, request: Request) -> None:
        """To the queue, in the place of its arrival."""
        request.timeline.begin("queued", self._runtime.now(), Place(self.gateway_id))
        self._waiting[request.request_id] = core.view(request, self._lengths)
        self._soon()

    def _soon(self) -> None:
        """One round for all that happens in one turn of the loop; with many waiting, in the time that rounds take."""
        if self._round is not None or not self._waiting:
            return
        due_s = self._round_s + len(self._waiting) * WAITING_S if len(self._waiting) > MANY else 0.0
        loop = asyncio.get_running_loop()
        if due_s <= self._runtime.now():
            self._round = loop.call_soon(self._schedule)
        else:
            self._round = loop.call_at(self._runtime.loop_time(due_s), self._schedule)

    def _schedule(self) -> None:
        self._round = None
        if not self._bus.connected:
            return  # nothing would arrive; the first worker that is heard again begins a new round
        # In the order of arrival: a request that comes back for another attempt does not queue again.
        queue = sorted(self._waiting.values(), key=_ARRIVAL)
        now_s = self._round_s = self._runtime.now()
        islands, calls = self.cluster().islands(), []
        before, self._states = self._states, {}
        for island in islands:
            key = island.domains if len(islands) > 1 else frozenset[str]()
            state = before[key] if key in before else self._scheduler.initial()
            mine = placing.queue_of(island, islands, queue)
            self._states[key], dispatches, again_s = self._scheduler.step(state, mine, island, now_s)
            calls += [] if again_s is None else [again_s]
            for dispatch in dispatches:
                self._dispatch(dispatch, island)
            if len(islands) > 1:
                queue = [view for view in queue if view.request_id in self._waiting]
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if calls and self._waiting:
            when_s = self._runtime.loop_time(max(min(calls), now_s + 1e-4))
            self._call = asyncio.get_running_loop().call_at(when_s, self._soon)

    def cluster(self) -> ClusterView:
        """What the policy sees."""
        unfetched: dict[str, int] = {}
        for request in self._requests.values():
            if request.unfetched:
                domain = self.fleet.domain_of(request.slip[0].worker_id)
                unfetched[domain] = unfetched.get(domain, 0) + (request.slip[0].stop or 0)
        longest = max(map(_LENGTH, self._waiting.values()), default=0)
        room = placing.kv_room(
            self.fleet.store_tokens(), self._config.kv_budget_share, unfetched, self._presence.gateways, longest
        )
        return self.fleet.view(room, {})

    def _dispatch(self, dispatch: Dispatch, cluster: ClusterView) -> None:
        tags = (
            placing.batch_tags(dispatch, self._runtime.new_id("batch"))
            if dispatch.together or dispatch.exclusive
            else {}
        )
        for placement in dispatch.placements:
            request = self._requests[placement.request_id] if placement.request_id in self._waiting else None
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
        request.timeline.placed(request.heard_s, Place(self.gateway_id, request.attempt))
        request.unfetched = len(slip) > 1 or core.left_open(request, slip[-1])
        request.unsettled = {}
        for place, segment in enumerate(slip):
            tokens = request.total_tokens - request.kv_tokens if place == 0 else 0
            request.unsettled[segment.worker_id] = tokens
            self.fleet.placed(segment.worker_id, tokens)
        any_role = placing.out_of_role(slip, cluster)
        work = core.work_of(request, (self.gateway_id, self.incarnation), tag, any_role)
        self.spawn(self._send(request, work))

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
            self.fail(request, error)
            return
        except (BusError, RequestError) as error:
            timed_out = True
            self._log.info(
                "work_not_delivered", request_id=work.request_id, trace_id=request.inbound.trace_id,
                worker_id=worker_id, error=repr(error),
            )  # fmt: skip
        if request.ended or request.attempt != attempt or worker_id not in request.unsettled:
            return  # void, or its tokens came before the answer
        if reply is not None and reply.accepted:
            self._settle(request, worker_id, received=True)
            return
        self.fleet.refused(worker_id, reply)
        if reply is not None and reply.reason == "invalid":
            self.fail(request, BadRequest(reply.message))
            return
        if timed_out:
            self.void(request)  # it may have arrived after all
        self._mend.refused(request, worker_id)

    # --- tokens -------------------------------------------------------------------------------------------------

    def _on_tokens(self, delivery: Delivery[TokenBatch]) -> None:
        batch = delivery.message
        hole = self.fleet.batch_came(batch.worker_id, batch.incarnation, batch.seq)
        for run in batch.runs:
            self.take_run(run, batch.worker_id, batch.incarnation)
        if hole:
            self._mend.missed_batch(batch.worker_id, batch.incarnation)

    def take_run(self, run: Run, worker_id: str, incarnation: str) -> None:
        """Take what is new in it, if it is of the present attempt."""
        request = self._requests.get(run.request_id)
        if request is None or run.attempt != request.attempt or not request.knows(worker_id, incarnation):
            self._on_void_run(run, worker_id)
            return
        request.heard_s = self._runtime.now()
        self._settle(request, worker_id, received=True)
        taken = core.take(request, run, worker_id, incarnation)
        if taken.gap:
            self._mend.ask_again(request)
            return
        if taken.piece is not None:
            self._streams[request.request_id].put(taken.piece)
        if taken.end is not None:
            self._on_end(request, taken.end, run)
        later = core.due(request)
        if later is not None:
            self.take_run(*later)

    def _on_void_run(self, run: Run, worker_id: str) -> None:
        """A late word of an attempt that is void; who goes on with it has not heard so."""
        if run.end is None:
            self._bus.publish(ABORT.at(worker_id=worker_id), Abort(request_id=run.request_id, attempt=run.attempt))

    def _on_end(self, request: Request, end: RunEnd, run: Run) -> None:
        if end in ("stop", "length"):
            self._end(request, end)
        elif end == "handed_over":
            request.stage = len(request.slip) - 1
            self._settle(request, request.slip[-1].worker_id, received=True)
        elif end in ("open", "migrated"):
            # What has been computed is in the KV store; only a place to go on is needed.
            request.kv_tokens = core.stored_tokens(request, end)
            holder = request.holder()
            request.kv_domain = self.fleet.domain_of(holder.worker_id) if holder is not None else ""
            self._mend.given_back(request)
        else:
            failure = error_from(run.failure) if run.failure is not None else Unavailable(f"the attempt {end}")
            self._mend.lost(request, failure)

    def _on_worker(self, delivery: Delivery[WorkerState]) -> None:
        state = delivery.message
        dead = self.fleet.heard(state, self._runtime.now())
        if dead is not None:
            self._mend.worker_lost(state.worker_id, dead)
        if self.fleet.batch_overdue(state.worker_id):
            self._mend.missed_batch(state.worker_id, state.incarnation)
        self._soon()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _overdue(self, request: Request) -> None:
        self.void(request)
        self.fail(request, DeadlineExceeded(f"not finished in time, {len(request.output)} tokens were made"))

    def void(self, request: Request) -> None:
        """Whoever works on the present attempt stops."""
        for segment in request.slip:
            abort = Abort(request_id=request.request_id, attempt=request.attempt)
            self._bus.publish(ABORT.at(worker_id=segment.worker_id), abort)

    def fail(self, request: Request, error: RequestError) -> None:
        """End it with an error."""
        if not request.ended:
            self._streams[request.request_id].put(error)
            self.void(request)
            self._end(request, "failed", error)

    def _end(self, request: Request, end: End, error: RequestError | None = None) -> None:
        completed, holder = end in ("stop", "length"), request.holder()
        if completed and holder is not None:
            request.timeline.begin("finished", request.last_s, request.place_of(holder))
        request.timeline.close(self._runtime.now())
        request.ended = True
        self.release(request)
        self._waiting.pop(request.request_id, None)
        self._requests.pop(request.request_id, None)
        self._streams.pop(request.request_id, None)
        timer = self._timers.pop(request.request_id, None)
        if timer is not None:
            timer.cancel()
        self._presence.windows.left(request, completed)
        if completed:
            self._lengths.saw(len(request.output))
        if self._on_ended is not None:
            self._on_ended(request, end, error)
        self._soon()

    def _settle(self, request: Request, worker_id: str, received: bool) -> None:
        tokens = request.unsettled.pop(worker_id, None)
        if tokens is not None:
            incarnation = next(s.incarnation for s in request.slip if s.worker_id == worker_id)
            self.fleet.settled(worker_id, incarnation, tokens, received)

    def release(self, request: Request) -> None:
        """Give back the credit of workers that never got the work."""
        request.unfetched = False
        for worker_id in list(request.unsettled):
            self._settle(request, worker_id, received=False)

    # --- heartbeat ----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            self._presence.forget_lapsed()
            if self._bus.connected:
                self._mend.look_around(self._presence.listened_until_s())
            self._presence.say(self._waiting.values(), len(self._requests))
            await asyncio.sleep(self._config.heartbeat_s)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(self._presence.window_left_s())
            self._presence.close_window(self._requests.values())
