"""The same requests at an engine itself: no gateway, no worker, each job submitted at its time.

Consumes a schedule and a `Subject`; produces the `Run` that the load generator makes of any target, in the subject's
own time.
"""

import asyncio
from collections.abc import Callable, Sequence

from dopd.engine.contract import JobOutput
from dopd.errors import LoadError, RequestError
from dopd_loadgen.drive import DriveSettings, Progress, drive, zero_of
from dopd_loadgen.goodput import NO_TARGET_S
from dopd_loadgen.model import Planned, Record, Run
from dopd_loadgen.profiling.subject import Subject, exact_job
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.workload import Schedule


class EngineTarget:
    """A `Target` on one engine. `seed` makes the prompts: runs with other seeds share no prefix."""

    def __init__(self, subject: Subject, schedule: Sequence[Planned], seed: int) -> None:
        self.model = str(subject.meta["model"])
        self._subject, self._seed = subject, seed
        # Made beforehand: this process shares its core with the engine's front.
        self._prompts = {planned.index: token_prompt(planned, seed, *subject.token_ids) for planned in schedule}
        self._running: dict[str, tuple[Record, float, asyncio.Event]] = {}

    async def open(self) -> None:
        """Listen."""
        self._subject.listener.hears = self._heard

    async def close(self) -> None:
        """Listen no longer."""
        self._subject.listener.hears = lambda _: None
        self._subject.listener.clear()

    async def send(self, planned: Planned, record: Record) -> None:
        now_s = self._subject.runtime.now()
        job = exact_job(f"check{self._seed}-{planned.index}", self._prompts[planned.index], planned.osl_tokens)
        zero_s, ended = zero_of(record, now_s), asyncio.Event()
        self._running[job.job_id] = record, zero_s, ended
        try:
            self._subject.engine.submit(job)
            await ended.wait()
        except RequestError as error:
            record.failure, record.detail = "client_error", error.message
        except asyncio.CancelledError:
            self._subject.engine.abort(job.job_id)
            raise
        finally:
            del self._running[job.job_id]
            record.counts = [1] * len(record.times_s)
            record.prompt_tokens = planned.isl_tokens
            record.ended_s = self._subject.runtime.now() - zero_s

    def _heard(self, outputs: Sequence[JobOutput]) -> None:
        for output in outputs:
            if output.job_id not in self._running:
                continue
            record, zero_s, ended = self._running[output.job_id]
            record.times_s += [time_s - zero_s for time_s in output.times_s]
            if output.end is not None:
                record.finish_reason = output.end
                record.failure = "" if output.end == "length" else "server_error"
                record.detail = output.error
                ended.set()


async def replay(
    subject: Subject, schedule: Schedule, seed: int, timeout_s: float, on_progress: Callable[[Progress], None] | None
) -> Run:
    """One run. Raises LoadError when a request had no whole answer: then there is nothing to compare."""
    target = EngineTarget(subject, schedule, seed)
    await target.open()
    try:
        records = await drive(schedule, target, DriveSettings(timeout_s=timeout_s), on_progress)
    finally:
        await target.close()
        await subject.engine.take_records()
    if failed := [record for record in records if record.failure]:
        raise LoadError("engine", f"{len(failed)} requests failed; the first: {failed[0].detail or failed[0].failure}")
    return Run(
        label=str(subject.meta["engine"]),
        api="virtual",
        target=str(subject.meta["engine"]),
        model=target.model,
        seed=seed,
        started_unix_s=0.0,
        span_s=schedule.span_s,
        ended_s=max(record.ended_s or 0.0 for record in records),
        slo_ttft_s=NO_TARGET_S,
        slo_tpot_s=NO_TARGET_S,
        records=records,
        gpus=subject.engine.gpus,
    )
