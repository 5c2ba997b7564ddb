"""An engine with somebody who listens: what tests of the engine contract work with."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dopd.engine.contract import Cached, Engine, Job, JobOutput, StepRecord
from dopd_proto.request import BatchTag, Sampling

_numbers = itertools.count()


def prompt(length: int, seed: int | None = None) -> list[int]:
    """Token ids of a small vocabulary, another text each time if no seed is given."""
    rng = random.Random(f"prompt/{next(_numbers) if seed is None else seed}")
    return [rng.randrange(3, 1024) for _ in range(length)]


def job(tokens: Sequence[int], new: int, *, prompt_tokens: int = 0, emit: bool = True, **more: object) -> Job:
    """A greedy job that runs to its full length. `prompt_tokens` of the tokens are the original prompt (0: all)."""
    sampling = Sampling(max_tokens=len(tokens) + new, temperature=0.0, ignore_eos=True)
    fields = {"sampling": sampling} | more
    return Job(f"job{next(_numbers)}", tokens, prompt_tokens or len(tokens), new, emit=emit, **fields)  # type: ignore[arg-type]


def tag(size: int, *, exclusive: bool = False) -> BatchTag:
    """A new batch."""
    return BatchTag(batch_id=f"batch{next(_numbers)}", size=size, exclusive=exclusive)


@dataclass(frozen=True, slots=True)
class Finished:
    """All that one job got."""

    tokens: list[int]
    times_s: list[float]
    end: str
    cached: Cached
    error: str


class Rig:
    """Start the engine with `on_output` of this object."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[tuple[JobOutput, ...]] = []
        self.outputs: dict[str, list[JobOutput]] = defaultdict(list)
        self._news = asyncio.Event()

    def on_output(self, outputs: Sequence[JobOutput]) -> None:
        self.calls.append(tuple(outputs))
        for output in outputs:
            self.outputs[output.job_id].append(output)
        self._news.set()

    def submit(self, *jobs: Job) -> None:
        for each in jobs:
            self.engine.submit(each)

    async def run(self, *jobs: Job) -> list[Finished]:
        """Submit and wait for all."""
        self.submit(*jobs)
        return [await self.finished(each) for each in jobs]

    async def one(self, each: Job) -> Finished:
        return (await self.run(each))[0]

    async def finished(self, each: Job, timeout_s: float = 30.0) -> Finished:
        """What the job got, when it has ended."""
        await self.until(lambda: any(output.end for output in self.outputs[each.job_id]), timeout_s)
        outputs = self.outputs[each.job_id]
        return Finished(
            tokens=[token for output in outputs for token in output.tokens],
            times_s=[time_s for output in outputs for time_s in output.times_s],
            end=next(output.end for output in outputs if output.end),
            cached=next((output.cached for output in outputs if output.cached), Cached()),
            error=outputs[-1].error,
        )

    async def started(self, *jobs: Job) -> None:
        """Wait until each has an output."""
        await self.until(lambda: all(self.outputs[each.job_id] for each in jobs))

    async def until(self, condition: "object", timeout_s: float = 30.0) -> None:
        """Wait until something that outputs bring about is so."""
        assert callable(condition)
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def records_of(self, *jobs: Job) -> list[StepRecord]:
        """The steps since the last call in which one of these ran."""
        ids = {each.job_id for each in jobs}
        return [record for record in await self.engine.take_records() if ids & record.tokens.keys()]
