"""What every engine promises, so that a worker need not know which one it drives.

An engine runs *jobs* with continuous batching. After each step it calls `on_output` once with all that the step
produced. It fetches KV that the shared store has, and stores what it computes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dopd.policy.base import BudgetSpec
from dopd_proto.asked import Feature
from dopd_proto.request import BatchTag, Sampling

JobEnd = Literal["stop", "length", "aborted", "failed"]
Logprobs = tuple[tuple[Sequence[int], Sequence[float]], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One segment as the engine sees it: continue `tokens` by at most `max_new_tokens`.

    `emit` false: the one token that a vLLM prefill must produce is dropped (a cut inside the prompt).
    `sampling` lengths count from the prompt's end; `prompt_tokens` of `tokens` are the original prompt. KV of
    `far_tokens` has just been computed in another domain and may still be on its way.
    """

    job_id: str
    tokens: Sequence[int]
    prompt_tokens: int
    max_new_tokens: int
    sampling: Sampling
    batch: BatchTag | None = None
    priority: int = 0
    emit: bool = True
    far_tokens: int = 0

    @property
    def continues(self) -> bool:
        """Whether another job has made tokens before it."""
        return len(self.tokens) > self.prompt_tokens


def uncached_tokens(job: Job, chunk_tokens: int) -> int:
    """Input to compute, before anybody has looked: a continuation's whole chunks are taken to be in the store."""
    return max(1, len(job.tokens) % chunk_tokens) if job.continues else len(job.tokens)


@dataclass(frozen=True, slots=True)
class Cached:
    """Where the input's KV came from, in tokens: the engine's own prefix cache, and the shared store.

    And when: `scheduled_s` the engine first computed something of the job, `fetch_s` and `fetched_s` it began and ended
    to move KV from the store. The runtime's clock; None where it is not known or nothing was moved. Two are equal
    when the tokens are.
    """

    local_tokens: int = 0
    store_tokens: int = 0
    scheduled_s: float | None = field(default=None, compare=False)
    fetch_s: float | None = field(default=None, compare=False)
    fetched_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class JobOutput:
    """New tokens of one job and when each was made (the runtime's clock). `cached` comes with the first output.

    `logprobs`, if the job asks for them, has for each token ids and log-probabilities: its own, then the likeliest.
    """

    job_id: str
    tokens: tuple[int, ...] = ()
    times_s: tuple[float, ...] = ()
    end: JobEnd | None = None
    cached: Cached | None = None
    error: str = ""
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one engine step really did: tokens scheduled per job. The proof that a policy was enforced."""

    step: int
    tokens: dict[str, int] = field(default_factory=dict)
    decodes: int = 0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine now. `steps` only grows; `store_ok` is false while the KV store does not answer.

    `queued_prefill_tokens` is input to compute, without what the store is thought to have, `context_tokens` the live
    context of decoding jobs.
    """

    steps: int = 0
    running: int = 0
    waiting: int = 0
    decoding: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    store_total_tokens: int = 0
    store_ok: bool = True
    alive: bool = True


OnOutput = Callable[[Sequence[JobOutput]], None]


class Engine(Protocol):
    """Life: `start`, any number of jobs, `stop`. The KV store holds whole chunks of `chunk_tokens`.

    `label` says what kind of engine it is, on `gpus` GPUs: workers with the same label can take each other's role.
    `features` is what it does with a job that not every engine does.

    Every submitted job ends with exactly one output that has an `end`."""

    max_running: int
    max_model_len: int
    chunk_tokens: int
    gpus: int
    label: str
    features: tuple[Feature, ...]

    async def start(self, on_output: OnOutput) -> None:
        """Load the model. Returns when jobs are taken. Raises EngineError when it cannot."""

    def submit(self, job: Job) -> None:
        """Queue a job. Raises BadRequest when it can never run (longer than the model's context)."""

    def abort(self, job_id: str) -> None:
        """End a job at the next token boundary (`end="aborted"`) and free its KV. Unknown ids are ignored."""

    async def set_budget(self, spec: BudgetSpec | None) -> None:
        """Use this `StepBudget` from the next step on; None is the engine's own scheduling."""

    async def take_records(self) -> list[StepRecord]:
        """The steps since the last call (bounded, newest kept)."""

    def load(self) -> EngineLoad:
        """Cheap: called on every worker state."""

    async def stop(self) -> None:
        """End all jobs as aborted and free everything, child processes included. May be called twice."""
