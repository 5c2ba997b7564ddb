"""The gateway's numbers for its operator port.

Consumes requests that are over, and the gateway itself when somebody looks; produces observations of histograms and
samples of `METRICS`. Tokens of requests in hand are counted when somebody looks, so that none costs anything.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from dopd.errors import RequestError
from dopd.obs.metric_table import Sample
from dopd.slo import Slo
from dopd_gateway.core import End, Request
from dopd_gateway.http_connection import Room
from dopd_gateway.over import outcome_of
from dopd_gateway.service import Gateway
from dopd_proto.base import Role

Observe = Callable[[float], None]


class GatewayMetrics:
    """What has ended so far. Latencies are on the gateway's own clock from end to end."""

    def __init__(self, histogram: Callable[[str], Observe]) -> None:
        """`histogram` gives what takes the values of one."""
        self._ttft = histogram("dopd_ttft_seconds")
        self._tpot = histogram("dopd_tpot_seconds")
        self._duration = histogram("dopd_request_duration_seconds")
        self._outcomes: Counter[End] = Counter(dict.fromkeys(get_args(End), 0))
        self._failures: Counter[str] = Counter()
        self._late = dict.fromkeys(("ttft", "tpot"), 0)
        self._within_slo = self._prompt = self._output = self._placements = self._lost = self._missed = 0

    def ended(self, request: Request, end: End, error: RequestError | None) -> None:
        """`Gateway`'s `on_ended`."""
        outcome = outcome_of(request, end, error)
        self._outcomes[end] += 1
        if error is not None:
            self._failures[error.code] += 1
        self._prompt += len(request.inbound.tokens)
        self._output += len(request.output)
        self._placements += request.attempt
        self._lost += request.failures
        self._missed += request.missed_tokens
        self._duration(outcome.ended_s - request.arrived_s)
        if outcome.ttft_s is not None:
            self._ttft(outcome.ttft_s)
        if outcome.tpot_s is not None:
            self._tpot(outcome.tpot_s)
        self._late["ttft"] += outcome.late
        self._late["tpot"] += outcome.slow
        self._within_slo += outcome.met

    def samples(self, gateway: Gateway) -> Iterator[Sample]:
        """All but the histograms."""
        for outcome, count in self._outcomes.items():
            yield "dopd_requests_total", (outcome,), count
        for code, count in self._failures.items():
            yield "dopd_request_failures_total", (code,), count
        in_hand = gateway.in_hand
        prompt = self._prompt + sum(len(request.inbound.tokens) for request in in_hand)
        output = self._output + sum(len(request.output) for request in in_hand)
        yield "dopd_arrivals_total", (), sum(self._outcomes.values()) + len(in_hand)
        yield "dopd_requests_refused_total", (), gateway.refused
        for target, count in self._late.items():
            yield "dopd_slo_missed_total", (target,), count
        yield "dopd_tokens_total", ("prompt",), prompt
        yield "dopd_tokens_total", ("output",), output
        yield "dopd_requests_within_slo_total", (), self._within_slo
        yield "dopd_placements_total", (), self._placements + sum(request.attempt for request in in_hand)
        yield "dopd_attempts_lost_total", (), self._lost + sum(request.failures for request in in_hand)
        yield "dopd_kv_missed_tokens_total", (), self._missed
        waiting = gateway.waiting
        yield "dopd_waiting_requests", (), len(waiting)
        yield "dopd_waiting_prefill_tokens", (), sum(view.uncached_tokens for view in waiting if not view.kv_tokens)
        yield "dopd_running_requests", (), len(in_hand) - len(waiting)
        yield from _workers(gateway)


def targets(slo: Slo) -> Iterator[Sample]:
    """Of requests that bring none."""
    yield "dopd_slo_seconds", ("ttft",), slo.ttft_s
    yield "dopd_slo_seconds", ("tpot",), slo.tpot_s


def failures(api: str, counts: Mapping[str, int]) -> Iterator[Sample]:
    """Answers that were an error, of the API `http` or `nats`."""
    for code, count in counts.items():
        yield "dopd_error_answers_total", (api, code), count


def connections(room: Room) -> Iterator[Sample]:
    """Of the public HTTP port."""
    yield "dopd_http_connections", (), room.open
    yield "dopd_http_held_bytes", (), room.held_bytes
    for code, count in room.refused.items():
        yield "dopd_http_refused_total", (code,), count
    yield "dopd_http_refused_total", ("none",), room.cut


def _workers(gateway: Gateway) -> Iterator[Sample]:
    counts: Counter[tuple[str, str]] = Counter({(role, "serving"): 0 for role in get_args(Role)})
    credit: dict[str, int] = dict.fromkeys(get_args(Role), 0)
    for known in gateway.fleet.workers.values():
        counts[known.state.role, known.state.phase] += 1
        credit[known.state.role] += gateway.fleet.credit(known)
    for labels, count in counts.items():
        yield "dopd_workers", labels, count
    for role, free in credit.items():
        yield "dopd_credit_requests", (role,), free
