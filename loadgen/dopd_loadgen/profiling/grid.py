"""Which steps to measure. Pure; consumes an engine's limits, produces scenes whose jobs bring these steps about.

Prompt steps are measured behind two full ones, so that the engine is never idle before them; decode steps once all
have begun; mixed steps by prompts that come while others decode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from dopd.errors import LoadError
from dopd.perf.points import Phase

Size = Literal["small", "full"]
LEAD_STEPS = 2
SKIPPED_STEPS = 2
"""Decode steps that are left out after the last prompt's."""
SHORTEST_PROMPT = 16
KV_SHARE = 0.95
"""Of the KV pool: what is left makes sure that nothing starts over."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits: of the engine, or less where less is asked for. Tokens; `max_running` requests."""

    kv_total_tokens: int
    max_running: int
    max_step_tokens: int
    max_model_len: int
    block_tokens: int

    def fits(self, prompts: Sequence["Ask"]) -> bool:
        """Whether these can be in the engine together."""
        held = sum(-(-(ask.prompt_tokens + ask.new_tokens) // self.block_tokens) * self.block_tokens for ask in prompts)
        long = max(ask.prompt_tokens + ask.new_tokens for ask in prompts)
        return (
            held <= KV_SHARE * self.kv_total_tokens and long <= self.max_model_len and len(prompts) <= self.max_running
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """One job. Of a `measured` one the steps that compute its prompt are."""

    prompt_tokens: int
    new_tokens: int = 1
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Jobs of a stage come together, once each of the stage before has had its first token.

    A prefill or mixed scene gives one point per stage with measured jobs, a decode scene one.
    """

    phase: Phase
    stages: tuple[tuple[Ask, ...], ...]


@dataclass(frozen=True, slots=True)
class Axes:
    """How many values each axis has, and how long decodes are watched."""

    prompt_lengths: int
    prompts: int
    decodes: int
    contexts: int
    mixed: int
    steps: int


AXES: dict[Size, Axes] = {"small": Axes(5, 2, 3, 3, 2, 12), "full": Axes(9, 4, 7, 5, 3, 32)}


def grid(limits: Limits, size: Size, longest_prompt: int = 0, largest_batch: int = 0) -> list[Scene]:
    """The scenes of one round, where asked for with no longer prompts or larger batches (0: the engine's limits).

    Raises LoadError when the engine has no room for a grid.
    """
    axes = AXES[size]
    within = replace(
        limits,
        max_model_len=min(limits.max_model_len, (longest_prompt or limits.max_model_len) + 1),
        max_running=min(limits.max_running, largest_batch or limits.max_running),
    )
    scenes = [*_prefills(within, limits, axes), *_decodes(within, axes), *_mixed(within, axes)]
    short = [name for name in ("prefill", "decode", "mixed") if sum(s.phase == name for s in scenes) < 3]
    if short:
        raise LoadError("--grid", f"no room for {short[0]} steps of three sizes within {within}")
    return scenes


def _prefills(within: Limits, engine: Limits, axes: Axes) -> list[Scene]:
    """Prompts alone, from short ones to whole chains of chunks, and several in a step."""
    lead = _lead(engine)
    spare = (
        int(KV_SHARE * engine.kv_total_tokens) - LEAD_STEPS * engine.max_step_tokens - len(lead) * engine.block_tokens
    )
    longest = min(within.max_model_len - 1, spare)
    alone = [(1, length) for length in spaced(SHORTEST_PROMPT, longest, axes.prompt_lengths)]
    counts = spaced(2, max(2, within.max_running // 2), axes.prompts)
    tokens = (engine.max_step_tokens // 4, engine.max_step_tokens)
    several = [(count, all_of // count) for count, all_of in product(counts, tokens)]
    scenes = []
    for count, length in dict.fromkeys(alone + several):
        asks = lead + (Ask(length, measured=True),) * count
        if 1 <= length < within.max_model_len and count < within.max_running and engine.fits(asks):
            scenes.append(Scene("prefill", (asks,)))
    return scenes


def _lead(engine: Limits) -> tuple[Ask, ...]:
    """Prompts that fill two steps to the last token."""
    whole, rest = divmod(LEAD_STEPS * engine.max_step_tokens, min(engine.max_step_tokens, engine.max_model_len - 1))
    return (Ask(min(engine.max_step_tokens, engine.max_model_len - 1)),) * whole + ((Ask(rest),) if rest else ())


def _decodes(limits: Limits, axes: Axes) -> list[Scene]:
    scenes = []
    for count in spaced(1, limits.max_running, axes.decodes):
        room = min(limits.max_model_len, int(KV_SHARE * limits.kv_total_tokens) // count - limits.block_tokens)
        # What the first makes until the last has begun, and the steps that are watched.
        longest = int((room - axes.steps - SKIPPED_STEPS - 4) / (1 + count / limits.max_step_tokens))
        for length in spaced(SHORTEST_PROMPT, longest, axes.contexts) if longest >= SHORTEST_PROMPT else ():
            new = axes.steps + SKIPPED_STEPS + 2 + _steps(count * length, limits, count)
            stage = (Ask(length, new),) * count
            if limits.fits(stage):
                scenes.append(Scene("decode", (stage,)))
    return scenes


def _mixed(limits: Limits, axes: Axes) -> list[Scene]:
    """Prompts of several lengths, one after the other, while others decode."""
    scenes = []
    chunk = limits.max_step_tokens - limits.max_running
    longest = min(2 * limits.max_step_tokens, limits.max_model_len - 1)
    lengths = dict.fromkeys((SHORTEST_PROMPT, chunk // 8, chunk // 2, chunk, longest))
    for count in spaced(1, max(1, limits.max_running * 3 // 4), axes.mixed):
        stages = [(Ask(length, measured=True),) for length in lengths if length >= 1]
        steps = sum(_steps(stage[0].prompt_tokens, limits, count) + SKIPPED_STEPS + 2 for stage in stages)
        room = min(limits.max_model_len, (int(KV_SHARE * limits.kv_total_tokens) - longest) // count)
        highest = int((room - steps - limits.block_tokens) / (1 + count / limits.max_step_tokens)) - 8
        for length in spaced(SHORTEST_PROMPT, highest, axes.mixed) if highest >= SHORTEST_PROMPT else ():
            decodes = (Ask(length, steps + _steps(count * length, limits, count)),) * count
            if limits.fits((*decodes, Ask(longest))):
                scenes.append(Scene("mixed", (decodes, *stages)))
    return scenes


def _steps(tokens: int, limits: Limits, decodes: int) -> int:
    """Steps that it takes at most to compute so many tokens beside so many decodes."""
    return -(-tokens // max(1, limits.max_step_tokens - decodes)) + 1


def spaced(low: int, high: int, count: int) -> list[int]:
    """Up to `count` whole numbers from `low` to `high`, each about the same multiple of the one before."""
    if high <= low or count < 2:
        return [max(low, high)]
    ratio = high / low
    return list(dict.fromkeys(round(low * ratio ** (n / (count - 1))) for n in range(count)))
