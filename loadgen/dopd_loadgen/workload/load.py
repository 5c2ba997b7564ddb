"""Loads and how they are put together: one after the other, side by side, faded into each other.

A `Load` consumes a generator and a duration in seconds and produces the requests in [0, duration), in order of time;
their indexes are counted when the whole is planned.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace

from numpy.random import Generator

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload.arrivals import Arrivals, enough, not_negative, positive
from dopd_loadgen.workload.lengths import Lengths
from dopd_loadgen.workload.prefix import Sharing

Load = Callable[[Generator, float], list[Planned]]


def load(arrivals: Arrivals, isl: Lengths, osl: Lengths, sharing: Sharing | None = None, phase: str = "") -> Load:
    """Arrivals with lengths drawn for each request by itself, and maybe shared prefixes."""

    def draw(rng: Generator, duration_s: float) -> list[Planned]:
        # One stream for each, so that a longer run begins as a shorter one does.
        arrival_rng, isl_rng, osl_rng, block_rng = rng.spawn(4)
        times = arrivals(arrival_rng, duration_s).tolist()
        isl_tokens, osl_tokens = isl(isl_rng, len(times)).tolist(), osl(osl_rng, len(times)).tolist()
        blocks = sharing.blocks(block_rng, isl_tokens) if sharing else [()] * len(times)
        size = sharing.block_tokens if sharing else 512
        return [
            Planned(0, at_s, i, o, ids, size, phase=phase)
            for at_s, i, o, ids in zip(times, isl_tokens, osl_tokens, blocks, strict=True)
        ]

    return draw


def scaled(inner: Load, factor: float) -> Load:
    """`factor` times the rate with the bursts' structure kept: time runs faster. Raises LoadError."""
    positive(**{"--rate-scale": factor})

    def draw(rng: Generator, duration_s: float) -> list[Planned]:
        return [replace(one, at_s=one.at_s / factor) for one in inner(rng, duration_s * factor)]

    return draw


def mixture(parts: Sequence[Load]) -> Load:
    """All at once, independent of each other."""

    def draw(rng: Generator, duration_s: float) -> list[Planned]:
        drawn = [part(own, duration_s) for part, own in zip(parts, rng.spawn(len(parts)), strict=True)]
        return list(heapq.merge(*drawn, key=lambda one: one.at_s))

    return draw


def sequence(parts: Sequence[tuple[Load, float]]) -> Load:
    """One after the other, each for its seconds, over and over until the duration is full. Raises LoadError."""
    return crossfade(parts, 0.0)


def crossfade(parts: Sequence[tuple[Load, float]], fade_s: float) -> Load:
    """As `sequence`, but each part gives way to the next on a straight ramp of `fade_s` about their border.

    At every moment the parts' shares add up to 1. Raises LoadError for a fade longer than a part.
    """
    if not parts:
        raise LoadError("sequence", "has no parts")
    positive(**{f"part {number} (s)": length_s for number, (_, length_s) in enumerate(parts, 1)})
    not_negative(fade_s=fade_s)
    if fade_s > min(length_s for _, length_s in parts):
        raise LoadError("fade_s", f"{fade_s} is longer than the shortest part")

    def draw(rng: Generator, duration_s: float) -> list[Planned]:
        enough(duration_s / min(length_s for _, length_s in parts))
        drawn: list[list[Planned]] = []
        start_s, number = 0.0, 0
        while start_s - fade_s / 2 < duration_s:
            part, length_s = parts[number % len(parts)]
            from_s, to_s = start_s - fade_s / 2, start_s + length_s + fade_s / 2
            draw_rng, thin_rng = rng.spawn(2)
            chances = iter(thin_rng.random(len(ones := part(draw_rng, to_s - from_s))))
            drawn.append([
                replace(one, at_s=at_s)
                for one, chance in zip(ones, chances, strict=True)
                if 0 <= (at_s := from_s + one.at_s) < duration_s
                and chance < _share(at_s, start_s, start_s + length_s, fade_s)
            ])  # fmt: skip
            start_s, number = start_s + length_s, number + 1
        return list(heapq.merge(*drawn, key=lambda one: one.at_s))

    return draw


def _share(at_s: float, start_s: float, end_s: float, fade_s: float) -> float:
    """Of the part from start to end. The load as a whole begins with its first part at full."""
    if fade_s == 0:
        return 1.0
    rising = 1.0 if start_s == 0 else (at_s - start_s) / fade_s + 0.5
    return max(0.0, min(1.0, rising, (end_s - at_s) / fade_s + 0.5))
