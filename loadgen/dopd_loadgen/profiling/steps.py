"""What an engine's steps were and how long they took. Pure; consumes jobs, step records and the times of outputs.

A step's duration is the gap between the engine's output before it and its own, so it counts only where the engine had
no pause between them; the grid sees to that. Steps without an output (a prompt's chunks but the last) are counted
together with the next that has one: step times are linear in these sums, so their mean is a step as good as any.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dopd.engine.contract import StepRecord
from dopd.errors import LoadError
from dopd.perf.points import Phase, Point


@dataclass(slots=True)
class Stretch:
    """The steps from one output to the next, summed. `jobs` are those whose prompts were computed in them."""

    steps: int = 0
    prompt_tokens: int = 0
    prompt_square_tokens2: int = 0
    prompts: int = 0
    decodes: int = 0
    context_tokens: int = 0
    duration_s: float = 0.0
    jobs: set[str] = field(default_factory=set)

    @property
    def phase(self) -> Phase:
        return "decode" if not self.prompts else "mixed" if self.decodes else "prefill"


def stretches(
    lengths: Mapping[str, int], records: Sequence[StepRecord], output_times_s: Sequence[float], began_s: float
) -> list[Stretch]:
    """All that the engine did for jobs with prompts of these lengths, the first stretch counted from `began_s`.

    Raises LoadError when records and outputs do not belong together: then nothing can be said of durations.
    """
    computed = dict.fromkeys(lengths, 0)
    found: list[Stretch] = []
    now = Stretch()
    for record in records:
        if not record.tokens.keys() <= lengths.keys():
            raise LoadError("engine", "did other jobs than the measured ones; let it have no other work")
        ready = [_count(now, job_id, share, computed, lengths) for job_id, share in record.tokens.items()]
        now.steps += 1
        if any(ready):
            found.append(now)
            now = Stretch()
    if len(found) != len(output_times_s):
        raise LoadError("engine", f"had {len(found)} steps with output, and {len(output_times_s)} outputs came")
    for stretch, start_s, end_s in zip(found, [began_s, *output_times_s], output_times_s, strict=False):
        stretch.duration_s = end_s - start_s
    return found


def _count(now: Stretch, job_id: str, share: int, computed: dict[str, int], lengths: Mapping[str, int]) -> bool:
    """Add what a step did of one job; whether the job got a token by it."""
    before, after = computed[job_id], computed[job_id] + share
    computed[job_id] = after
    if before < lengths[job_id]:
        now.prompt_tokens += share
        now.prompt_square_tokens2 += after * after - before * before
        now.prompts += 1
        now.jobs.add(job_id)
    else:
        now.decodes += 1
        now.context_tokens += after
    return after >= lengths[job_id]


def point(of: Iterable[Stretch]) -> Point:
    """The mean step of stretches of one phase. Raises ValueError for none or for several phases."""
    stretched = list(of)
    (phase,) = {stretch.phase for stretch in stretched}
    steps = sum(stretch.steps for stretch in stretched)
    batch = sum(stretch.prompts if phase == "prefill" else stretch.decodes for stretch in stretched)
    return Point(
        phase=phase,
        prompt_tokens=sum(stretch.prompt_tokens for stretch in stretched) / steps,
        prompt_square_tokens2=sum(stretch.prompt_square_tokens2 for stretch in stretched) / steps,
        batch_requests=batch / steps,
        context_tokens=sum(stretch.context_tokens for stretch in stretched) / steps,
        latency_s=sum(stretch.duration_s for stretch in stretched) / steps,
    )
