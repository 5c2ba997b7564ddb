"""Runs scenes on a live engine, several rounds of them, and gives the points of a profile file.

Consumes a `Subject` and scenes; produces one `Point` per measured stretch: the median over the rounds, of which the
first is thrown away. Rounds go through all scenes in turn, so that a machine that gets slower slows all alike.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from dopd.errors import LoadError
from dopd.perf.points import Point
from dopd_loadgen.profiling.grid import LEAD_STEPS, SKIPPED_STEPS, Scene
from dopd_loadgen.profiling.steps import Stretch, point, stretches
from dopd_loadgen.profiling.subject import Listener, Subject

WARM_UP_ROUNDS = 1
SCENE_TIMEOUT_S = 600.0
QUIET_S = 0.01
"""Between two scenes: the engine has nothing to do, and its last outputs are through."""


async def measure(
    subject: Subject, scenes: Sequence[Scene], repeats: int, on_scene: Callable[[int], None]
) -> list[Point]:
    """The points of all scenes in order. `on_scene` hears how many scenes of all rounds are done.

    Raises LoadError when the engine's steps cannot be told from its outputs.
    """
    rounds: list[list[Point]] = []
    for number in range(WARM_UP_ROUNDS + repeats):
        points: list[Point] = []
        for done, scene in enumerate(scenes):
            points += points_of(scene, await _played(subject, scene))
            on_scene(number * len(scenes) + done + 1)
        if number >= WARM_UP_ROUNDS:
            rounds.append(points)
    return [_median(same) for same in zip(*rounds, strict=True)]


async def arrival_s(subject: Subject, scenes: Sequence[Scene], points: Sequence[Point], repeats: int) -> float:
    """How much longer a single prompt takes on an idle engine, from `submit` to its token, than the step itself.

    The way into the engine and out of it, and waking up; the median over the prompts of the grid that fit in a step.
    Raises LoadError when the grid has none.
    """
    alone = [
        (point.prompt_tokens, point.latency_s)
        for point in points
        if point.phase == "prefill" and point.prompt_square_tokens2 == point.prompt_tokens**2
    ]
    if not alone:
        raise LoadError("--grid", "has no single prompt that fits in a step")
    over: list[float] = []
    for _ in range(WARM_UP_ROUNDS + repeats):
        for tokens, latency_s in alone:
            await asyncio.sleep(QUIET_S)
            listener = subject.listener
            began_s = subject.runtime.now()
            job = subject.job(round(tokens), 1)
            subject.engine.submit(job)
            await listener.ended([job.job_id], SCENE_TIMEOUT_S)
            over.append(listener.first_s[job.job_id] - began_s - latency_s)
            listener.clear()
    await subject.engine.take_records()
    return max(0.0, round(median(over[WARM_UP_ROUNDS * len(alone) :]), 9))


async def _played(subject: Subject, scene: Scene) -> tuple[list[Stretch], list[set[str]]]:
    """All stretches of one scene, and the measured jobs of each stage."""
    await asyncio.sleep(QUIET_S)
    await subject.engine.take_records()
    listener: Listener = subject.listener
    listener.clear()
    stages = [
        [(subject.job(ask.prompt_tokens, ask.new_tokens), ask.measured) for ask in stage] for stage in scene.stages
    ]
    began_s = subject.runtime.now()
    for stage in stages:
        for job, _ in stage:
            subject.engine.submit(job)
        await listener.begun([job.job_id for job, _ in stage], SCENE_TIMEOUT_S)
    jobs = [job for stage in stages for job, _ in stage]
    await listener.ended([job.job_id for job in jobs], SCENE_TIMEOUT_S)
    records = await subject.engine.take_records()
    lengths = {job.job_id: len(job.tokens) for job in jobs}
    found = stretches(lengths, records, listener.times_s, began_s)
    return found, [{job.job_id for job, measured in stage if measured} for stage in stages]


def points_of(scene: Scene, played: tuple[list[Stretch], list[set[str]]]) -> list[Point]:
    """What a scene is played for. Raises LoadError when it did not come about."""
    found, measured = played
    if scene.phase == "decode":
        together = [stretch for stretch in found if not stretch.jobs and stretch.decodes == len(scene.stages[0])]
        chosen = [together[SKIPPED_STEPS:]]
    else:
        after = found[LEAD_STEPS:]
        chosen = [[each for each in after if each.jobs and each.jobs <= jobs] for jobs in measured if jobs]
    points = []
    for part in chosen:
        part = [stretch for stretch in part if stretch.phase == scene.phase]
        if not part:
            raise LoadError("engine", f"did not make the {scene.phase} steps that were planned: {scene.stages}")
        points.append(point(part))
    return points


def _median(same: Sequence[Point]) -> Point:
    """The median latency; the work is the mean of what the rounds really had."""
    count = len(same)
    return replace(
        same[0],
        prompt_tokens=sum(p.prompt_tokens for p in same) / count,
        prompt_square_tokens2=sum(p.prompt_square_tokens2 for p in same) / count,
        batch_requests=sum(p.batch_requests for p in same) / count,
        context_tokens=sum(p.context_tokens for p in same) / count,
        latency_s=median(p.latency_s for p in same),
    )
