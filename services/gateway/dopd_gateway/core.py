"""One request in the gateway: where it is placed, which tokens it has, what an incoming run means. Pure.

The rule of it all: tokens are taken in order of their output index, each once, and only from workers of the present
attempt; everything else is late and ignored.
"""

from array import array
from dataclasses import dataclass, field
from typing import Literal

from dopd.policy.base import RequestView
from dopd_gateway.lengths import Lengths
from dopd_gateway.stream import Inbound, Piece
from dopd_gateway.timeline import Place, Timeline
from dopd_proto.base import pack_tokens, unpack_tokens
from dopd_proto.request import BatchTag, DecodeWork, PrefillWork, Run, RunEnd, Segment, Timing

End = Literal["stop", "length", "cancelled", "failed"]
"""How a request ends for its client."""


@dataclass(slots=True, eq=False)
class Request:
    """`slip` is the present placement, `stage` the segment whose worker is responsible now.

    `kv_tokens` have been computed and stored by earlier segments, in `kv_domain`. `unsettled` are workers of the slip
    of which it is not known that they have the work; `unfetched` while a prefilled prompt waits in the KV store.
    `placed_tokens` was the length at the placement, `heard_s` when a worker last said something about it.
    """

    request_id: str
    inbound: Inbound
    arrived_s: float
    output: list[int] = field(default_factory=list)
    first_s: float | None = None
    last_s: float = 0.0
    attempt: int = 0
    failures: int = 0
    slip: tuple[Segment, ...] = ()
    stage: int = 0
    unsettled: dict[str, int] = field(default_factory=dict)
    unfetched: bool = False
    kv_tokens: int = 0
    kv_domain: str = ""
    placed_tokens: int = 0
    heard_s: float = 0.0
    avoid: frozenset[str] = frozenset()
    stash: list[tuple[Run, str, str]] = field(default_factory=list)
    asking: bool = False
    missed_tokens: int = 0
    ended: bool = False
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def total_tokens(self) -> int:
        return len(self.inbound.tokens) + len(self.output)

    def holder(self) -> Segment | None:
        """The segment whose worker is responsible for the next token."""
        return self.slip[self.stage] if self.stage < len(self.slip) else None

    def knows(self, worker_id: str, incarnation: str) -> bool:
        """Whether this worker's word counts for the present attempt."""
        for segment in self.slip:  # noqa: SIM110 - asked for each token, and a generator takes three times as long
            if segment.worker_id == worker_id and segment.incarnation == incarnation:
                return True
        return False

    def place_of(self, segment: Segment) -> Place:
        """The present attempt on this segment's worker, for the timeline."""
        return Place(segment.worker_id, self.attempt, segment.epoch)

    def doubtful(self, now_s: float, silence_s: float) -> bool:
        """Whether to ask its workers: tokens are missing, or the one that has the work has said nothing for long."""
        holder = self.holder()
        if holder is None or holder.worker_id in self.unsettled:
            return False
        return bool(self.stash) or now_s - self.heard_s > silence_s


@dataclass(frozen=True, slots=True)
class Taken:
    """What a run came to: a piece for the client, a hole before it, or the end of a segment."""

    piece: Piece | None = None
    gap: bool = False
    end: RunEnd | None = None


def take(request: Request, run: Run, worker_id: str, incarnation: str) -> Taken:
    """Take the new tokens of a run; what was seen before is dropped, what is too early is kept for later."""
    have = len(request.output)
    if run.index > have:
        request.stash.append((run, worker_id, incarnation))
        return Taken(gap=True)
    place = next((i for i, s in enumerate(request.slip) if s.worker_id == worker_id), request.stage)
    if place > request.stage:
        request.stage = place
    request.missed_tokens += run.missed_tokens
    if run.started and request.stage:
        request.unfetched = False
    if run.timing is not None:
        _note(request, run, run.timing, worker_id)
    tokens = unpack_tokens(run.tokens)[have - run.index :]
    times = run.times_s[have - run.index :]
    request.output += tokens
    end = run.end if len(request.output) >= run.index + len(run.tokens) // 4 else None
    if times:
        if request.first_s is None:
            request.first_s = times[0]
            request.timeline.first_token(times[0], request.heard_s, request.place_of(request.slip[place]))
        request.last_s = times[-1]
    final = end if end in ("stop", "length") else None
    likely = _logprobs(run, have - run.index) if run.logprobs else ()
    piece = Piece(have, tuple(tokens), tuple(times), final, likely) if tokens or final else None
    return Taken(piece, end=end)


def _logprobs(run: Run, seen: int) -> tuple[tuple[list[int], list[float]], ...]:
    """A row of ids and values for each token but the first `seen`."""
    ids, values = unpack_tokens(run.logprob_ids), array("f", run.logprobs).tolist()
    width = len(ids) // (len(run.tokens) // 4)
    return tuple((ids[at : at + width], values[at : at + width]) for at in range(seen * width, len(ids), width))


def _note(request: Request, run: Run, timing: Timing, worker_id: str) -> None:
    """For the timeline. Where both segments are on one worker, the later one speaks once it is responsible."""
    places = [place for place, s in enumerate(request.slip) if s.worker_id == worker_id]
    place = places[-1] if places[-1] <= request.stage else places[0]
    segment = request.slip[place]
    computes = not request.output or segment.stop is not None or not (place or request.kv_tokens)
    request.timeline.ran(
        request.place_of(segment), timing, run.times_s, computes, goes_on=run.end in (None, "handed_over")
    )


def due(request: Request) -> tuple[Run, str, str] | None:
    """The next run of those that came too early, once what was missing before it is there."""
    if not request.stash:
        return None
    have = len(request.output)
    ready = next((place for place, (run, _, _) in enumerate(request.stash) if run.index <= have), None)
    return None if ready is None else request.stash.pop(ready)


def stored_tokens(request: Request, end: RunEnd) -> int:
    """Tokens whose KV the attempt that ends so has stored.

    Whoever makes a token has the KV of all before it. An attempt that made none may have computed a first segment.
    """
    if request.total_tokens > request.placed_tokens:
        return request.total_tokens - 1
    if end == "open" or request.stage:
        return request.slip[0].stop or 0
    return request.kv_tokens


def view(request: Request, lengths: Lengths) -> RequestView:
    """The request as the policy sees it."""
    inbound, left = request.inbound, request.inbound.sampling.max_tokens - len(request.output)
    osl_tokens, osl_std_tokens = lengths.to_come(len(request.output), left)
    return RequestView(
        request_id=request.request_id,
        isl_tokens=request.total_tokens,
        uncached_tokens=request.total_tokens - request.kv_tokens,
        osl_tokens=osl_tokens,
        osl_std_tokens=osl_std_tokens,
        max_new_tokens=left,
        slo=inbound.slo,
        # Clients and engines mean what vLLM does, the lowest first; policies the highest.
        priority=-inbound.priority,
        arrived_s=request.arrived_s,
        attempt=request.attempt,
        kv_tokens=request.kv_tokens,
        kv_domain=request.kv_domain,
        avoid=request.avoid,
    )


def left_open(request: Request, last: Segment) -> bool:
    """Whether this last segment of a slip ends before the request does, so that its KV waits for another worker."""
    left = request.inbound.sampling.max_tokens - len(request.output)
    return last.stop is not None and last.stop < request.total_tokens + left - 1


def work_of(
    request: Request, gateway: tuple[str, str], batch: BatchTag | None, any_role: bool
) -> PrefillWork | DecodeWork:
    """The message for the first segment of the present slip; `gateway` is (id, incarnation)."""
    common = {
        "request_id": request.request_id,
        "attempt": request.attempt,
        "gateway_id": gateway[0],
        "gateway_incarnation": gateway[1],
        "tokens": pack_tokens(request.inbound.tokens) + pack_tokens(request.output),
        "prompt_tokens": len(request.inbound.tokens),
        "sampling": request.inbound.sampling,
        "segment": request.slip[0],
        "deadline_s": request.inbound.deadline_s,
        "batch": batch,
        "priority": request.inbound.priority,
        "any_role": any_role,
        "kv_tokens": request.kv_tokens,
        "kv_domain": request.kv_domain,
    }
    if request.slip[0].stop is None:
        return DecodeWork(**common)  # type: ignore[arg-type]
    return PrefillWork(**common, then=request.slip[1] if len(request.slip) > 1 else None)  # type: ignore[arg-type]
