"""From a piece of work to an engine job, and from a finished job to the next piece of work. Pure."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from dopd.engine.contract import Cached, Job
from dopd.worker.role import Kind
from dopd_proto.base import pack_tokens, token_array
from dopd_proto.request import DecodeWork, PrefillWork, Segment, Timing, Work

_NO_TIMING = Timing()


@dataclass(slots=True)
class Held:
    """Work in hand: what came in, and what has been made of it. `index` is the output index of the first made token.

    `most_tokens` of KV it holds at its longest. `told` when a run of it has been sent.
    """

    job_id: str
    kind: Kind
    work: Work
    input_tokens: "array[int]"
    index: int
    most_tokens: int
    made: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    logprobs: list[tuple[Sequence[int], Sequence[float]]] = field(default_factory=list)
    started: bool = False
    giving_back: bool = False
    timing: Timing = _NO_TIMING
    told: bool = False


def job_id_of(work: Work) -> str:
    """One id per placement and kind; a worker may hold both segments of one request."""
    return f"{work.request_id}.{work.attempt}.{'p' if isinstance(work, PrefillWork) else 'd'}"


def hold(work: Work) -> Held:
    """Unpack a piece of work. Raises ValueError when its tokens or lengths make no sense."""
    tokens = token_array(work.tokens)
    index = len(tokens) - work.prompt_tokens
    if work.prompt_tokens < 1 or index < 0 or index >= work.sampling.max_tokens:
        raise ValueError(f"{len(tokens)} tokens with a prompt of {work.prompt_tokens}, max {work.sampling.max_tokens}")
    if work.segment.stop is not None and work.segment.stop < 1:
        raise ValueError("a segment must cover at least one token")
    kind: Kind = "prefill" if isinstance(work, PrefillWork) else "decode"
    whole = work.prompt_tokens + work.sampling.max_tokens
    most = whole if work.segment.stop is None else min(whole, work.segment.stop + 1)
    return Held(job_id_of(work), kind, work, tokens, index, most)


def is_far(work: Work, kv_domain: str) -> bool:
    """Whether a worker of this domain is to go on with KV of another one."""
    return bool(work.kv_tokens) and work.kv_domain not in ("", kv_domain)


def job_of(held: Held, kv_domain: str = "") -> Job:
    """The engine job. A cut inside the input computes only its part, and its forced one token is dropped."""
    work, tokens = held.work, held.input_tokens
    left = work.sampling.max_tokens - held.index
    stop = work.segment.stop
    if stop is not None and stop < len(tokens):
        return Job(held.job_id, tokens[:stop], work.prompt_tokens, 1, work.sampling, work.batch, work.priority, False)
    most = left if stop is None else min(left, stop - len(tokens) + 1)
    far = work.kv_tokens if is_far(work, kv_domain) else 0
    return Job(held.job_id, tokens, work.prompt_tokens, most, work.sampling, work.batch, work.priority, far_tokens=far)


def timing_of(held: Held, cached: Cached | None, done_s: float | None) -> Timing | None:
    """Keep what is known of the segment's times now; they go with its first run and with the one that ends it."""
    if held.told and done_s is None:
        return None
    held.told = True
    if cached is not None:
        held.timing = replace(
            held.timing, fetch_s=cached.fetch_s, fetched_s=cached.fetched_s, scheduled_s=cached.scheduled_s
        )
    if done_s is not None:
        held.timing = replace(held.timing, done_s=done_s)
    return held.timing


def complete(held: Held) -> bool:
    """Whether the request, not only the segment, has all its tokens."""
    return held.index + len(held.made) >= held.work.sampling.max_tokens


def next_work(held: Held, then: Segment, kv_domain: str = "") -> DecodeWork:
    """The second segment of the slip, with the domain that has the KV of the first."""
    work = held.work
    return DecodeWork(
        request_id=work.request_id,
        attempt=work.attempt,
        gateway_id=work.gateway_id,
        gateway_incarnation=work.gateway_incarnation,
        tokens=work.tokens + pack_tokens(held.made),
        prompt_tokens=work.prompt_tokens,
        sampling=work.sampling,
        segment=then,
        deadline_s=work.deadline_s,
        priority=work.priority,
        any_role=work.any_role,
        kv_tokens=kv_tokens(held),
        kv_domain=kv_domain,
    )


def kv_tokens(held: Held) -> int:
    """Tokens whose KV this segment computed: all it saw but the last token made."""
    stop = held.work.segment.stop
    if not held.made:
        return min(stop or 0, len(held.input_tokens))
    return len(held.input_tokens) + len(held.made) - 1


def since(held: Held, index: int) -> tuple[Sequence[int], Sequence[float]]:
    """Made tokens from output index `index` on, with their times."""
    start = max(0, index - held.index)
    return held.made[start:], held.times_s[start:]
