"""What is done to a load before it is sent: scale, loop, cut, clip, other lengths, other arrivals. Pure.

Every function consumes requests in order of time and produces new ones, so each can be tested alone; chance comes in
as a seeded generator.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from numpy.random import Generator

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload.arrivals import bursty, enough, gaps, positive
from dopd_loadgen.workload.lengths import Lengths


def scale(planned: Sequence[Planned], factor: float) -> list[Planned]:
    """`factor` times the rate: every time is divided by it, so bursts stay bursts. Raises LoadError."""
    positive(**{"--rate-scale": factor})
    return [replace(one, at_s=one.at_s / factor) for one in planned]


def cut(
    planned: Sequence[Planned], start_s: float = 0.0, end_s: float = math.inf, num_prompts: int | None = None
) -> list[Planned]:
    """The requests of [start_s, end_s) with `start_s` as the new zero, and of those the first `num_prompts`."""
    kept = [replace(one, at_s=one.at_s - start_s) for one in planned if start_s <= one.at_s < end_s]
    return kept[:num_prompts]


def loop(
    planned: Sequence[Planned],
    rng: Generator,
    duration_s: float = math.inf,
    num_prompts: int | None = None,
    turn_first: bool = False,
) -> list[Planned]:
    """The load over and over until the duration or the number is full, each time from a random point on.

    So its parts meet in another order each time. The first pass is the load as it is, unless `turn_first`. Each pass
    has block ids of its own: otherwise every prompt from the second pass on would be in a prefix cache as a whole.
    Raises LoadError.
    """
    span_s = wrapped_span_s(planned)
    wanted = duration_s / span_s * len(planned) if num_prompts is None else num_prompts
    enough(wanted)
    shift = 1 + max((max(one.blocks, default=0) for one in planned), default=0)
    made: list[Planned] = []
    turn = 0
    while turn * span_s < duration_s and (num_prompts is None or len(made) < num_prompts):
        made += _moved(
            _turned(planned, rng.random() * span_s, span_s) if turn or turn_first else planned, turn, span_s, shift
        )
        turn += 1
    return cut(made, 0.0, duration_s, num_prompts)


def wrapped_span_s(planned: Sequence[Planned]) -> float:
    """The length of one pass: up to the last arrival, and a mean gap to the next pass's first. Raises LoadError."""
    if not planned or planned[-1].at_s <= 0:
        raise LoadError("--loop", "a load without a duration cannot be looped")
    return planned[-1].at_s * (1 + 1 / len(planned))


def _turned(planned: Sequence[Planned], offset_s: float, span_s: float) -> list[Planned]:
    late = [replace(one, at_s=one.at_s - offset_s) for one in planned if one.at_s >= offset_s]
    early = [replace(one, at_s=one.at_s - offset_s + span_s) for one in planned if one.at_s < offset_s]
    return late + early


def _moved(planned: Sequence[Planned], turn: int, span_s: float, shift: int) -> list[Planned]:
    return [
        replace(one, at_s=one.at_s + turn * span_s, blocks=tuple(block + turn * shift for block in one.blocks))
        for one in planned
    ]


def retime(planned: Sequence[Planned], rng: Generator, request_rate: float, burstiness: float = 1.0) -> list[Planned]:
    """The same requests in the same order at new times: gamma gaps as in `vllm bench serve`, or all at 0 for inf.

    Unlike there the times are not stretched to end at n / rate, so a run's rate varies as the process does. Raises
    LoadError.
    """
    bursty(burstiness)
    if not request_rate > 0:
        raise LoadError("--request-rate", f"{request_rate} is not above 0")
    if math.isinf(request_rate):
        return [replace(one, at_s=0.0) for one in planned]
    times = gaps(rng, burstiness, len(planned), request_rate).cumsum().tolist()
    return [replace(one, at_s=at_s) for one, at_s in zip(planned, times, strict=True)]


def with_lengths(
    planned: Sequence[Planned], rng: Generator, isl: Lengths | None = None, osl: Lengths | None = None
) -> list[Planned]:
    """Other lengths, drawn for each request; blocks beyond a shorter prompt are dropped."""
    isl_rng, osl_rng = rng.spawn(2)
    made = list(planned)
    if isl is not None:
        made = [_shortened(one, tokens) for one, tokens in zip(made, isl(isl_rng, len(made)).tolist(), strict=True)]
    if osl is not None:
        made = [
            replace(one, osl_tokens=tokens) for one, tokens in zip(made, osl(osl_rng, len(made)).tolist(), strict=True)
        ]
    return made


def clip(
    planned: Sequence[Planned], max_isl: int | None = None, max_osl: int | None = None, max_model_len: int | None = None
) -> tuple[list[Planned], dict[str, int]]:
    """Lengths that a model can take, and how many requests were cut on each side.

    Where prompt and answer together are too long for the model, the prompt is cut, so that there is still an answer;
    but a prompt given word by word stays, and its answer is cut. Raises LoadError when such a prompt is itself too
    long.
    """
    if max_model_len is not None and max_model_len < 2:
        raise LoadError("--max-model-len", f"{max_model_len} has no room for a prompt and an answer")
    for flag, limit in (("--max-isl", max_isl), ("--max-osl", max_osl)):
        if limit is not None and limit < 1:
            raise LoadError(flag, f"{limit} is not above 0")
    room = max_model_len or math.inf
    clipped: Counter[str] = Counter()
    made = []
    for one in planned:
        if one.text and one.isl_tokens > min(max_isl or math.inf, room - 1):
            raise LoadError("--max-isl", f"a prompt word by word has {one.isl_tokens} tokens, which is too long")
        osl = int(min(one.osl_tokens, max_osl or math.inf, room - (one.isl_tokens if one.text else 1)))
        isl = one.isl_tokens if one.text else int(min(one.isl_tokens, max_isl or math.inf, room - osl))
        clipped.update({"osl": osl < one.osl_tokens, "isl": isl < one.isl_tokens})
        made.append(replace(_shortened(one, isl), osl_tokens=osl))
    return made, {name: number for name, number in clipped.items() if number}


def _shortened(one: Planned, isl_tokens: int) -> Planned:
    return replace(one, isl_tokens=isl_tokens, blocks=one.blocks[: -(-isl_tokens // one.block_tokens)])


def numbered(planned: Sequence[Planned]) -> list[Planned]:
    """Indexes from 0 on."""
    return [replace(one, index=index) for index, one in enumerate(planned)]
