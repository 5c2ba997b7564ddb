"""`Presence`: this gateway among others. Says that it is there and what it counts, hears who else is.

Consumes the heartbeats of all gateways; produces `GatewayState`, `Arrivals` and `Outcomes`, and up to when others'
silence means anything.
"""

from collections.abc import Collection, Iterable

import msgspec

from dopd.bus import Bus, Delivery
from dopd.config import GatewayConfig
from dopd.obs.telemetry import Begun, Tracing, begin
from dopd.policy.base import RequestView
from dopd.runtime.clock import Runtime
from dopd_gateway.core import Request
from dopd_gateway.windows import Windows
from dopd_proto.subjects import ARRIVALS, GATEWAY_STATE, OUTCOMES
from dopd_proto.telemetry import GatewayState


class Presence:
    """One gateway's heartbeat, and its counts of the present window."""

    def __init__(
        self,
        gateway_id: str,
        incarnation: str,
        bus: Bus,
        runtime: Runtime,
        config: GatewayConfig,
        tracing: Tracing | None = None,
    ) -> None:
        self._me, self._tracing = (gateway_id, incarnation), tracing
        self._bus, self._runtime, self._config = bus, runtime, config
        self._peers: dict[str, float] = {}
        self._echo_s = runtime.now()
        self.windows = Windows(gateway_id, incarnation, runtime.now())

    @property
    def gateways(self) -> int:
        """How many share the workers, this one included."""
        return len(self._peers) or 1

    def heard(self, delivery: Delivery[GatewayState]) -> None:
        """A heartbeat, ours or another's."""
        state = delivery.message
        self._peers[state.gateway_id] = self._runtime.now() + state.lease_s
        if state.incarnation == self._me[1]:
            self._echo_s = self._runtime.now()

    def forget_lapsed(self) -> None:
        """Peers whose lease is over."""
        now_s = self._runtime.now()
        self._peers = {peer: until_s for peer, until_s in self._peers.items() if until_s > now_s}

    def listened_until_s(self) -> float | None:
        """Up to when others' silence counts: our own last heartbeat that came back; None when it does not count.

        At the echo the broker, and we, were awake. Whoever lost the connection as we did gets a lease to come back.
        """
        listened_s = self._runtime.loop_time(self._echo_s) - self._bus.connected_since_s
        return self._echo_s if listened_s > self._config.lease_s else None

    def say(self, waiting: Collection[RequestView], requests: int) -> None:
        """Publish the heartbeat of a gateway with so many requests, some of them waiting."""
        now_s = self._runtime.now()
        prompts = [view for view in waiting if not view.kv_tokens]
        state = GatewayState(
            gateway_id=self._me[0],
            incarnation=self._me[1],
            sent_s=now_s,
            lease_s=self._config.lease_s,
            waiting=len(waiting),
            running=requests - len(waiting),
            waiting_prefill_tokens=sum(view.uncached_tokens for view in prompts),
            waiting_decodes=len(waiting) - len(prompts),
            late_prefill_tokens=sum(v.uncached_tokens for v in prompts if v.arrived_s + v.slo.ttft_s < now_s),
        )
        self._bus.publish(GATEWAY_STATE.at(gateway_id=self._me[0]), state)

    def window_left_s(self) -> float:
        """Time to the window's end. Ends are multiples of its length on the clock: gateways then cut time alike."""
        length_s = self._config.window_s
        left_s = length_s - self._runtime.now() % length_s
        return left_s if left_s > 0.1 * length_s else left_s + length_s

    def close_window(self, running: Iterable[Request]) -> None:
        """Publish the counts of the window and begin the next. `running` are the requests that have not ended."""
        arrivals, outcomes, self.windows = self.windows.close(self._runtime.now(), running)
        about = {"dopd.gateway_id": self._me[0], "dopd.requests": arrivals.requests}
        span = begin(self._tracing, Begun("arrivals", arrivals.start_s, about))
        span.end(arrivals.end_s)
        arrivals = msgspec.structs.replace(arrivals, traceparent=span.traceparent)
        # In this order a forecast that the arrivals bring about knows the outcomes.
        self._bus.publish(OUTCOMES.at(gateway_id=self._me[0]), outcomes)
        self._bus.publish(ARRIVALS.at(gateway_id=self._me[0]), arrivals)
