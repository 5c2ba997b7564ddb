"""`VllmEngine`: the `Engine` contract on vLLM, with KV shared through LMCache.

Consumes jobs (lower `priority` first); produces their outputs, one call of `on_output` per engine step. vLLM is
imported when the engine starts, after the environment that it must find was prepared. Only greedy fp32 output is
promised to be equal across engines.

What is delivered when: tokens with the step that made them, stamped on arrival here; `Cached` with the first output,
exact, from vLLM's own count of local and external tokens, with its scheduler's times; an abort at once, the KV being
freed at the next step.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from dopd.engine.contract import EngineLoad, Job, JobOutput, OnOutput, StepRecord
from dopd.engine.vllm import environment
from dopd.engine.vllm.jobs import Jobs
from dopd.engine.vllm.seen import Seen
from dopd.engine.vllm.settings import VllmSettings
from dopd.errors import ConfigError, EngineError
from dopd.policy.base import BudgetSpec
from dopd.runtime.clock import Runtime
from dopd_proto.asked import Feature

if TYPE_CHECKING:
    from dopd.engine.vllm.core import Core
    from dopd.engine.vllm.model_facts import ModelFacts

log = structlog.get_logger(__name__)


class VllmEngine:
    """One vLLM engine: this process is its front, EngineCore its child. All methods run on the event loop's thread."""

    def __init__(self, settings: VllmSettings, runtime: Runtime) -> None:
        self.max_running = settings.max_num_seqs
        self.max_model_len = settings.max_model_len or 0
        self.chunk_tokens = settings.chunk_tokens
        self.gpus = settings.tensor_parallel_size
        self.label = f"{Path(settings.model).name}-tp{self.gpus}"
        grammars: tuple[Feature, ...] = ("json_schema",) if settings.grammars else ()
        self.features: tuple[Feature, ...] = ("logprobs", "penalties", "logit_bias", *grammars)
        self.kv_domain = settings.kv_domain
        self._settings = settings
        self._runtime = runtime
        self._jobs = Jobs()
        self._seen = Seen()
        self._started_core: Core | None = None
        self._on_output: OnOutput | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._commands: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._aborted: list[JobOutput] = []
        # LMCache keeps state by request id: an id must be unique among all engines of a store.
        self._tries = (f"{os.urandom(4).hex()}{number}" for number in itertools.count())

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self, on_output: OnOutput) -> None:
        environment.prepare(self._settings.model)
        from dopd.engine.vllm.core import Core
        from dopd.engine.vllm.model_facts import facts_of

        core = self._started_core = Core(self._settings)
        try:
            config = await core.start()
        except Exception as error:
            raise EngineError(f"vLLM did not start: {error}") from error
        self._facts = facts_of(config, self._settings)
        self.max_model_len = self._facts.max_model_len
        self._seen.started(self._facts.kv_total_tokens, self._facts.store_total_tokens)
        self._on_output = on_output
        self._tasks = [asyncio.create_task(loop()) for loop in (self._read, self._send, self._watch)]

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush_aborted()
        self._emit(self._jobs.end_all("aborted"))
        self._on_output = None
        self._seen.ended()
        core, self._started_core = self._started_core, None
        if core is not None:
            await core.stop()

    @property
    def facts(self) -> "ModelFacts":
        """Limits and capacities, once started."""
        return self._facts

    @property
    def child_pids(self) -> list[int]:
        """EngineCore's process."""
        return self._core.pids

    @property
    def store_losses(self) -> int:
        """How often the store failed us: each costs a recompute."""
        return self._seen.store_losses

    @property
    def _core(self) -> "Core":
        if self._started_core is None:
            raise EngineError("the engine is not running")
        return self._started_core

    # --- jobs -------------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        from dopd.engine.vllm.sampling import check, engine_request

        core = self._core
        check(job, self._facts.vocabulary, min(self.max_model_len, self._facts.kv_total_tokens))
        if job.job_id in self._jobs.by_job:
            raise EngineError(f"job {job.job_id} is already here")
        request_id = f"{job.job_id}#{next(self._tries)}"
        request = engine_request(job, request_id, self._facts.vocabulary)
        self._jobs.add(job, request_id)
        if self._seen.load.alive:
            self._commands.put_nowait(lambda: core.add(request))
        else:
            asyncio.get_running_loop().call_soon(self._die, "the engine is dead")

    def abort(self, job_id: str) -> None:
        running = self._jobs.remove(job_id)
        if running is None:
            return
        core = self._core
        self._commands.put_nowait(lambda: core.abort([running.request_id]))
        if not self._aborted:
            asyncio.get_running_loop().call_soon(self._flush_aborted)
        self._aborted.append(JobOutput(job_id, end="aborted"))

    def _flush_aborted(self) -> None:
        aborted, self._aborted = self._aborted, []
        self._emit(aborted)

    def _emit(self, outputs: Sequence[JobOutput]) -> None:
        if not outputs or self._on_output is None:
            return
        try:
            self._on_output(outputs)
        except Exception:
            # The listener's bug; the other jobs of the engine go on.
            log.exception("on_output_failed", jobs=len(outputs))

    # --- policy and load --------------------------------------------------------------------------------------------

    async def set_budget(self, spec: BudgetSpec | None) -> None:
        spec_or_none = (spec.target, dict(spec.params), spec.prefills_only) if spec else (None, {}, False)
        try:
            await self._core.call("dopd_set_budget", *spec_or_none)
        except Exception as error:
            raise ConfigError(
                "[policy]", spec.target if spec else "none", f"the engine refused the budget: {error}"
            ) from error

    async def take_records(self) -> list[StepRecord]:
        taken = await self._core.call("dopd_take_records")
        return [StepRecord(step, tokens, decodes) for step, tokens, decodes in taken]

    def load(self) -> EngineLoad:
        return self._jobs.load(self._seen.load, self._seen.computed_tokens, self.chunk_tokens)

    # --- the line to EngineCore -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                step = await self._core.next_step()
                if step.scheduler_stats is not None:
                    self._seen.step(step.scheduler_stats)
                now_s = self._runtime.now()
                zero_s = now_s - time.monotonic()
                outputs = [self._jobs.output(made, now_s, zero_s) for made in step.outputs]
                self._emit([output for output in outputs if output is not None])
        except Exception as error:
            self._die(f"{type(error).__name__}: {error}")

    async def _send(self) -> None:
        """In order, so that an abort never overtakes its job."""
        while True:
            command = await self._commands.get()
            try:
                await command()
            except Exception as error:
                self._die(f"{type(error).__name__}: {error}")

    async def _watch(self) -> None:
        """An idle engine makes no steps, and yet its store may come and go."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_s / 2)
            with contextlib.suppress(Exception):
                self._seen.store(await self._core.call("dopd_load"))

    def _die(self, why: str) -> None:
        if self._seen.load.alive:
            log.error("engine_died", reason=why)
            self._seen.ended()
        self._emit(self._jobs.end_all("failed", why))
