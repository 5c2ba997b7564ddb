"""`Mend`: what goes wrong with requests that were placed. Asks workers for lost tokens, makes new attempts.

Consumes what the gateway notices (holes, ends, refusals, silence) and the workers' answers to `Resend`; produces runs
that were lost and came again, requests that wait for another attempt, and failures.
"""

from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

from dopd.bus import Bus
from dopd.config import GatewayConfig
from dopd.errors import BusError, RequestError, Unavailable
from dopd.obs.log import get_logger
from dopd.runtime.clock import Runtime
from dopd_gateway.core import Request
from dopd_gateway.fleet import Fleet
from dopd_proto.request import Resend, ResendReply, Run, Segment
from dopd_proto.subjects import RESEND


class Desk(Protocol):
    """What mending needs of the gateway."""

    gateway_id: str
    fleet: Fleet

    def take_run(self, run: Run, worker_id: str, incarnation: str) -> None:
        """A run that came on another way than in a batch."""

    def wait(self, request: Request) -> None:
        """To the queue, for another attempt."""

    def void(self, request: Request) -> None:
        """Whoever works on the present attempt stops."""

    def release(self, request: Request) -> None:
        """Give back the credit of workers that never got the work."""

    def fail(self, request: Request, error: RequestError) -> None:
        """End it with an error."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run as a task that ends with the gateway."""


class Mend:
    """Mends the requests of one gateway."""

    def __init__(
        self, desk: Desk, requests: Mapping[str, Request], bus: Bus, runtime: Runtime, config: GatewayConfig
    ) -> None:
        self._desk, self._requests = desk, requests
        self._bus, self._runtime, self._config = bus, runtime, config
        self._log = get_logger().bind(gateway_id=desk.gateway_id)

    # --- lost tokens --------------------------------------------------------------------------------------------

    def ask_again(self, request: Request) -> None:
        """Tokens are missing, or their worker is silent: ask, unless that is under way."""
        if not request.asking:
            request.asking = True
            self._desk.spawn(self._resend(request))

    def missed_batch(self, worker_id: str, incarnation: str) -> None:
        """The worker sent more than came: ask for every request that it holds."""
        for request in list(self._requests.values()):
            if request.knows(worker_id, incarnation):
                self.ask_again(request)

    async def _resend(self, request: Request) -> None:
        """Hear from the slip's workers how far they are; a new attempt when the tokens, or the work, are gone."""
        attempt, index = request.attempt, len(request.output)
        gone: set[str] = set()
        try:
            for segment in request.slip:
                has_it = await self._recall(request, segment, index)
                if request.ended or request.attempt != attempt or not request.slip or len(request.output) > index:
                    return
                # Work that is on its way there, or whose answer is on its way here, is not lost yet.
                if has_it is False and segment.worker_id not in request.unsettled:
                    gone.add(segment.worker_id)
        finally:
            request.asking = False
            request.heard_s = self._runtime.now()
        holder = request.holder()
        needed = {s.worker_id for s in request.slip} if request.stash else {holder.worker_id} if holder else set()
        # Without a slip it has been given back since somebody asked, and waits for another place.
        if needed and needed <= gone:
            self._desk.void(request)
            self.lost(request, Unavailable("tokens were lost"))

    async def _recall(self, request: Request, segment: Segment, index: int) -> bool | None:
        """Take what this worker has from `index` on. False when it has nothing of it, None when it cannot say."""
        if not self._desk.fleet.knows(segment.worker_id, segment.incarnation):
            return False
        ask = Resend(
            gateway_id=self._desk.gateway_id, request_id=request.request_id, attempt=request.attempt, index=index
        )
        to = RESEND.at(worker_id=segment.worker_id)
        try:
            reply = await self._bus.request(to, ask, (ResendReply,), self._config.resend_timeout_s)
        except (BusError, RequestError):
            return None
        if reply.run is None:
            return False
        self._desk.take_run(reply.run, segment.worker_id, segment.incarnation)
        return bool(reply.run.tokens) or reply.run.end is None

    # --- another attempt ----------------------------------------------------------------------------------------

    def refused(self, request: Request, avoid: str) -> None:
        """The work was not taken: to the queue again, elsewhere if possible."""
        self._desk.release(request)
        request.avoid = request.avoid | {avoid}
        request.slip = ()
        self._desk.wait(request)

    def given_back(self, request: Request) -> None:
        """Ended on its worker in good order, to go on elsewhere."""
        self._desk.release(request)
        self._desk.void(request)  # a hand-over that was given up may have arrived after all
        request.avoid = frozenset()
        request.slip = ()
        self._desk.wait(request)

    def lost(self, request: Request, error: RequestError) -> None:
        """The attempt failed: a new one with the tokens so far as input, or the end."""
        self._desk.release(request)
        holder = request.holder()
        if holder is not None:
            request.timeline.lost(request.last_s, request.place_of(holder))
        request.failures += 1
        if request.failures >= self._config.max_attempts:
            self._desk.fail(request, error)
            return
        request.avoid = frozenset({holder.worker_id}) if holder else frozenset()
        request.kv_tokens, request.slip = 0, ()
        self._log.info(
            "attempt_lost", request_id=request.request_id, trace_id=request.inbound.trace_id, attempt=request.attempt,
            reason=error.message,
        )  # fmt: skip
        self._desk.wait(request)

    # --- silence ------------------------------------------------------------------------------------------------

    def worker_lost(self, worker_id: str, incarnation: str) -> None:
        """This life of the worker is over, and with it what it was responsible for."""
        for request in list(self._requests.values()):
            holder = request.holder()
            if holder is not None and holder.worker_id == worker_id and holder.incarnation == incarnation:
                self._desk.void(request)
                self.lost(request, Unavailable(f"worker {worker_id} was lost"))

    def look_around(self, listened_until_s: float | None) -> None:
        """Whoever was silent is lost or asked. Silence of workers counts up to `listened_until_s`, None: not at all."""
        if listened_until_s is not None:
            for known in self._desk.fleet.lapsed(listened_until_s):
                self._log.warning("worker_lost", worker_id=known.state.worker_id)
                self.worker_lost(known.state.worker_id, known.state.incarnation)
        now_s = self._runtime.now()
        for request in list(self._requests.values()):
            if request.doubtful(now_s, self._config.lease_s):
                self.ask_again(request)
