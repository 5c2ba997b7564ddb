"""One round of binding: which worker is best for a prompt, for an answer, or for both, as the round fills them.

Consumes a cluster view and a profile; produces dispatches within credit and KV budget. A part of `dopd`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from dopd.cluster import ClusterView, WorkerView
from dopd.perf.model import step_s, transfer_s
from dopd.perf.profile import Profile
from dopd.policy.base import Dispatch, RequestView, SegmentPlan
from dopd.policy.deadlines import Job
from dopd.policy.paced import SATURATED
from dopd.policy.static_split import mean_context, placed, room_of

STEP_SHARE, KV_SHARE = 0.9, 0.9
"""Of the target and of the memory a decode worker may use, and still take a prompt to compute."""
JOIN_S = 0.5
"""So long an answer may wait, between first and second token, to join those that decode."""
LEAST_SLACK = 0.1
"""The share of its time that it must have left for that."""


@dataclass(slots=True)
class Seat:
    """A worker with what the round has given it already.

    `prompt_s` is the work of its prompts; `requests` and `context_tokens` decode there or are on their way. From these
    follow `load`, what counts where an answer is placed, `slack`, the share of its time for prompts, and `delay_s`, how
    long a decode worker takes for the prompts that it has. Without credit `load` and `delay_s` are infinite.
    """

    worker: WorkerView
    credit: int
    prompt_s: float
    requests: int
    context_tokens: float
    load: float = 0.0
    slack: float = 0.0
    delay_s: float = 0.0


class Round:
    """Seats and what is left of them. Each `…` method binds the request and says whether it could."""

    def __init__(self, profile: Profile, tpot_s: float, queue: Sequence[RequestView], cluster: ClusterView) -> None:
        self.dispatches: list[Dispatch] = []
        self._profile, self._tpot_s, self._links = profile, tpot_s, cluster.links
        mean_tokens = mean_context(cluster)
        token_s = profile.prefill_token_s * (1 + SATURATED) + profile.prefill_token2_s * mean_tokens
        seats = {w.worker_id: _seat(w, token_s, mean_tokens) for w in cluster.workers}
        self.prefill = [seats[w.worker_id] for w in cluster.serving("prefill", "mixed")]
        self.decode = [seats[w.worker_id] for w in cluster.serving("decode", "mixed")]
        pool = {id(seat) for seat in self.prefill}
        self._apart = [seat for seat in self.decode if id(seat) not in pool]
        self._mixed = len(self._apart) < len(self.decode)
        self._room = room_of(queue, cluster)
        for seat in seats.values():
            self._rate(seat)
        self._look()

    def finish(self, request: RequestView) -> bool:
        """A place to decode for a request whose prompt is computed."""
        seat = self._target(request, request.kv_domain)
        if seat is None:
            return False
        self._bind(request, SegmentPlan(seat.worker.worker_id))
        self._give(seat, self._join_s(request), request.isl_tokens)
        return True

    def remote(self, job: Job, ahead_s: float) -> bool:
        """Compute the prompt in the prefill pool, where at most `ahead_s` of work lie before it."""
        request, source = job.request, self._source(job.request)
        if source is None or source.prompt_s > ahead_s:
            return False
        target = self._target(request, source.worker.kv_domain)
        place, more = SegmentPlan(source.worker.worker_id, request.isl_tokens), request.max_new_tokens > 1
        if any(source is seat for seat in self.decode):
            self._bind(request, SegmentPlan(source.worker.worker_id))
            self._give(source, job.work_s, request.isl_tokens)
            return True
        if not more:
            self._bind(request, place)
        elif self._room.get(source.worker.kv_domain, 0) < request.isl_tokens:
            self._room[source.worker.kv_domain] = 0  # whoever comes later does not take what it waits for
            return False
        else:
            self._room[source.worker.kv_domain] -= request.isl_tokens
            self._bind(request, place, SegmentPlan(None if target is None else target.worker.worker_id))
            if target is not None:
                self._give(target, self._join_s(request), request.isl_tokens)
        self._give(source, job.work_s, 0)
        return True

    def local(self, job: Job, within_s: float) -> bool:
        """Compute the prompt where it decodes, when that is predicted to end in time."""
        seat = self._spare
        if seat is None or seat.worker.worker_id in job.request.avoid:
            return False
        if (seat.prompt_s + job.work_s) > within_s * seat.slack:
            return False
        self._bind(job.request, SegmentPlan(seat.worker.worker_id))
        self._give(seat, job.work_s, job.request.isl_tokens)
        return True

    def ultra_short(self, job: Job) -> bool:
        """Whether to compute the prompt on the decode worker takes no longer than to move its KV there."""
        wait_s = self._first.prompt_s if self._first is not None else 0.0
        return rides_along(self._profile, job.request.uncached_tokens, wait_s)

    def open(self, ahead_s: float, behind_s: float) -> bool:
        """Whether any prompt could start."""
        source = self._first
        return (behind_s > 0 and self._spare is not None) or (source is not None and source.prompt_s <= ahead_s)

    def slow(self, request: RequestView, share: float = 1.0) -> bool:
        """Whether one more answer would make steps longer than that share of its target, wherever it is decoded."""
        if request.max_new_tokens == 1:
            return False
        if self._best is None:
            return bool(self.decode)
        seat, tpot_s = self._best, request.slo.tpot_s
        if self._pressure(seat, tpot_s, 1, request.isl_tokens) > share:
            return True
        time_left = 1 - self._pressure(seat, STEP_SHARE * tpot_s, 1, request.isl_tokens)
        return not self._mixed and seat.prompt_s > self.patience_s(request) * time_left

    def patience_s(self, request: RequestView) -> float:
        """How long its answer may wait behind prompts: what is kept back of its target, over all its tokens."""
        return min(JOIN_S, (1 - STEP_SHARE) * request.slo.tpot_s * request.osl_tokens)

    def _join_s(self, request: RequestView) -> float:
        """What its decode worker computes of a prompt: the rest beyond whole chunks."""
        return request.isl_tokens % self._profile.chunk_tokens * self._profile.prefill_token_s

    def _look(self) -> None:
        """The best seats as they are now."""
        self._first = min((s for s in self.prefill if s.credit > 0), key=lambda s: s.prompt_s, default=None)
        self._best = _finite(min(self.decode, key=_load, default=None), _load)
        self._spare = _finite(min(self._apart, key=_delay_s, default=None), _delay_s)

    def _source(self, request: RequestView) -> Seat | None:
        if not request.avoid or self._first is None:
            return self._first
        return min((s for s in self.prefill if s.credit > 0), key=lambda s: (_avoided(s, request), s.prompt_s))

    def _target(self, request: RequestView, kv_domain: str) -> Seat | None:
        """Where to decode what is computed in that domain."""
        if self._best is None or not (request.avoid or self._links):
            return self._best
        able = (s for s in self.decode if s.credit > 0)
        return min(able, key=lambda s: (_avoided(s, request), s.load + self._far(request, kv_domain, s)))

    def _far(self, request: RequestView, kv_domain: str, seat: Seat) -> float:
        """What the way from another domain adds to the mean time per output token, as share of its target."""
        token_s = self._links.get((kv_domain, seat.worker.kv_domain), 0.0)
        return token_s * request.isl_tokens / (request.slo.tpot_s * max(1.0, request.osl_tokens))

    def _rate(self, seat: Seat) -> None:
        """What follows from what it has."""
        able = seat.credit > 0
        seat.load = self._pressure(seat, self._tpot_s, 0, 0) if able else inf
        seat.slack = self._slack(seat) if able else 0.0
        seat.delay_s = seat.prompt_s / seat.slack if seat.slack else inf

    def _pressure(self, seat: Seat, tpot_s: float, requests: int, tokens: float) -> float:
        """The step as share of its target, or the memory in use if that is the larger share."""
        context_tokens = seat.context_tokens + tokens
        step = step_s(self._profile, 0, 0, seat.requests + requests, context_tokens)
        used_tokens = seat.worker.kv_used_tokens - seat.worker.context_tokens + context_tokens
        return max(step / tpot_s, used_tokens / max(1, seat.worker.kv_total_tokens))

    def _slack(self, seat: Seat) -> float:
        """The share of a decode worker's time that may go to prompts; 0 when it is too little, or memory is short."""
        if self._pressure(seat, inf, 0, 0) > KV_SHARE:
            return 0.0
        step = step_s(self._profile, 0, 0, max(1, seat.requests), seat.context_tokens)
        slack = 1 - step / (STEP_SHARE * self._tpot_s)
        return slack if slack >= LEAST_SLACK else 0.0

    def _bind(self, request: RequestView, *segments: SegmentPlan) -> None:
        self.dispatches.append(placed(request, *segments))

    def _give(self, seat: Seat, prompt_s: float, context_tokens: int) -> None:
        seat.credit -= 1
        seat.prompt_s += prompt_s
        seat.requests += context_tokens > 0
        seat.context_tokens += context_tokens
        self._rate(seat)
        self._look()


def rides_along(profile: Profile, tokens: int, wait_s: float) -> bool:
    """Whether a prompt is ultra-short (algorithms.md 1.10): a decode step grows less by all of it than the KV is late.

    KV moves in whole chunks (`chunk_tokens`), so the remainder is computed on the decode worker in any case: what
    counts is the growth beyond that, against the transfer and the wait for a prefill worker.
    """
    rest = tokens % profile.chunk_tokens
    growth_s = _ride_s(profile, tokens) - _ride_s(profile, rest)
    return growth_s <= transfer_s(profile, tokens - rest) + wait_s


def _ride_s(profile: Profile, tokens: int) -> float:
    """By how much a decode step is longer with so many tokens of a prompt in it."""
    if not tokens:
        return 0.0
    fixed_s = max(0.0, profile.prefill_fixed_s - profile.decode_fixed_s)
    return fixed_s + profile.prefill_token_s * tokens + profile.prefill_token2_s * tokens**2


def _seat(worker: WorkerView, token_s: float, mean_tokens: float) -> Seat:
    """As it is before the round. Of requests that do not decode yet the context is taken to be the mean."""
    requests = worker.running + worker.waiting
    coming = max(0, requests - worker.decoding)
    prompt_s = worker.queued_prefill_tokens * token_s
    return Seat(worker, worker.credit, prompt_s, requests, worker.context_tokens + coming * mean_tokens)


def _load(seat: Seat) -> float:
    return seat.load


def _delay_s(seat: Seat) -> float:
    return seat.delay_s


def _finite(seat: Seat | None, key: Callable[[Seat], float]) -> Seat | None:
    return seat if seat is not None and key(seat) < inf else None


def _avoided(seat: Seat, request: RequestView) -> bool:
    return seat.worker.worker_id in request.avoid
