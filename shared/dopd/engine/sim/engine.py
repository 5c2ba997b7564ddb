"""`SimEngine`: the emulated engine on the event loop. Keeps the time for `SimCore` and talks to the KV store.

With `together` steps that nothing can touch are advanced in one go (virtual time); results, times and decisions are
those of single steps, because both run the same core and a run is cut at whatever comes from outside.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence

from dopd.engine.contract import EngineLoad, Job, JobOutput, OnOutput, StepRecord
from dopd.engine.sim.core import SimCore
from dopd.engine.sim.kvstore import KvStore
from dopd.engine.sim.tokens import weighs
from dopd.errors import BadRequest
from dopd.perf.profile import Profile
from dopd.policy import budget_from
from dopd.policy.base import BudgetSpec
from dopd.runtime.clock import Runtime
from dopd_proto.asked import Feature


class SimEngine:
    """One emulated GPU worker. All methods run on the event loop's thread."""

    def __init__(
        self, profile: Profile, store: KvStore, runtime: Runtime, save_decode: bool = True, together: bool = False
    ) -> None:
        self.max_running = profile.max_running
        self.max_model_len = profile.max_model_len
        self.chunk_tokens = profile.chunk_tokens
        self.gpus, self.label = profile.gpus, profile.name
        # Its tokens follow from all tokens alone: what weighs or forbids some cannot change them.
        self.features: tuple[Feature, ...] = ("logprobs",)
        self._core = SimCore(profile, save_decode, lazy=together)
        self._store = store
        self._runtime = runtime
        self._together = together
        self._draws = runtime.rng(runtime.new_id("engine"))
        self._looking: dict[str, Job] = {}
        self._step: tuple[float, float] | None = None
        self._ends_s: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self._storing = False
        self._stall_until_s = 0.0
        self._on_output: OnOutput | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self, on_output: OnOutput) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_output = on_output

    async def stop(self) -> None:
        for job_id in [*self._looking, *(seq.job.job_id for seq in (*self._core.running, *self._core.waiting))]:
            self.abort(job_id)
        self.kill()

    def kill(self) -> None:
        """Die silently, as a crashed process does: what was made before still goes out, nothing after."""
        self._catch_up()
        self._emit(self._core.take_all())
        self._on_output = None
        self._step = None
        if self._timer is not None:
            self._timer.cancel()

    def stall(self, duration_s: float) -> None:
        """Make no progress for so long, as an engine does whose GPU hangs."""
        self._catch_up()
        self._stall_until_s = self._runtime.now() + duration_s
        if self._step is not None:
            self._foresee()

    # --- jobs ---------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        most = min(self.max_model_len, self._core.pool.total * self._core.profile.block_tokens)
        if not job.tokens or len(job.tokens) + job.max_new_tokens > most:
            raise BadRequest(f"{len(job.tokens)} input and {job.max_new_tokens} output tokens; the limit is {most}")
        if weighs(job.sampling):
            raise BadRequest("an emulated engine has no penalties, biases or schemas")
        self._looking[job.job_id] = job
        if arrival_s := self._core.profile.arrival_s:
            self._loop.call_at(self._runtime.loop_time(self._runtime.now() + arrival_s), self._look_up, job)
        else:
            self._look_up(job)

    def _look_up(self, job: Job) -> None:
        if self._looking.get(job.job_id) is not job:
            return  # aborted on its way
        keys = self._core.keys_of(job)
        if keys:
            self._store.lookup(keys, lambda found: self._enter(job, keys, found))
        else:
            self._enter(job, keys, 0)

    def _enter(self, job: Job, keys: list[bytes], found: int) -> None:
        if self._looking.pop(job.job_id, None) is None or self._on_output is None:
            return
        self._catch_up()
        self._core.submit(job, found, self._nonce(job), self._runtime.now(), keys)
        self._kick()

    def _nonce(self, job: Job) -> int:
        if job.sampling.temperature == 0:
            return 0
        return (
            self._draws.getrandbits(32) | 1 if job.sampling.seed is None else (job.sampling.seed * 2 + 1) & 0xFFFFFFFF
        )

    def abort(self, job_id: str) -> None:
        if self._looking.pop(job_id, None):
            self._emit([JobOutput(job_id, end="aborted")])
            return
        self._catch_up()
        output = self._core.abort(job_id)
        if output is not None:
            self._kick()
            self._emit([output])

    async def set_budget(self, spec: BudgetSpec | None) -> None:
        self._catch_up()
        self._core.budget = None if spec is None else budget_from(spec)
        self._core.budget_state = None if self._core.budget is None else self._core.budget.initial()
        self._core.budget_for_prefills_only = spec is not None and spec.prefills_only
        if self._step is not None:
            self._foresee()

    async def take_records(self) -> list[StepRecord]:
        records = list(self._core.records)
        self._core.records.clear()
        return records

    def load(self) -> EngineLoad:
        self._catch_up()
        return self._core.load(self._looking.values(), self._store.total_tokens, self._store.ok)

    # --- steps --------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        """Something has changed: begin a step when none is under way, else think again when to wake."""
        if self._step is not None:
            self._foresee()
        elif not self._storing and self._on_output is not None:
            self._begin(self._runtime.now())

    def _begin(self, now_s: float) -> None:
        start_s = max(now_s, self._stall_until_s)
        duration_s = self._core.begin_step(start_s)
        self._step = None if duration_s is None else (start_s, start_s + duration_s)
        if self._step is not None:
            self._foresee()
        elif self._core.waiting or self._core.running:
            self._wake_at(self._core.retry_at(start_s))

    def _foresee(self) -> None:
        """Wake at the end of the step, or of the first that matters if steps are advanced together."""
        assert self._step is not None
        start_s, end_s = self._step
        # None of them goes into a stall: the step under way ends, and the next begins when it is over.
        together = self._together and start_s >= self._stall_until_s
        self._ends_s = self._core.foresee(end_s) if together else [end_s]
        self._wake_at(self._ends_s[-1])

    def _wake_at(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._runtime.loop_time(when_s), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._catch_up()
        if self._step is None:
            self._kick()
        elif self._timer is None:  # a real loop's timer may fire a little early
            self._wake_at(self._ends_s[-1])

    def _catch_up(self) -> None:
        """End every step that is over by now, and begin the next."""
        now_s = self._runtime.now()
        while self._step is not None and self._step[1] <= now_s:
            done = min(bisect_right(self._ends_s, now_s), len(self._ends_s) - 1)
            if done:
                self._core.advance(self._ends_s[:done])
                self._step = self._ends_s[done - 1], self._ends_s[done]
                del self._ends_s[:done]
            else:
                self._finish(self._step[1])

    def _finish(self, end_s: float) -> None:
        outputs, stored = self._core.end_step(end_s)
        self._step = None
        if stored:
            self._storing = True
            self._store.put(stored, lambda: self._stored(outputs, end_s))
        else:
            self._after(outputs, end_s)

    def _stored(self, outputs: Sequence[JobOutput], end_s: float) -> None:
        self._storing = False
        self._after(outputs, max(end_s, self._runtime.now()) if not self._together else end_s)

    def _after(self, outputs: Sequence[JobOutput], end_s: float) -> None:
        # The next step begins before anyone hears of this one, as it would on a GPU that runs ahead of its host.
        if self._on_output is not None:
            self._begin(end_s)
        self._emit(outputs)

    def _emit(self, outputs: Sequence[JobOutput]) -> None:
        if outputs and self._on_output is not None:
            self._on_output(outputs)
