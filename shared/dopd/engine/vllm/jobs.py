"""The jobs in a vLLM engine, and what the load says of them.

Consumes submitted jobs and what EngineCore's steps made; produces `JobOutput`s, the `Cached` of a job's first output,
and `EngineLoad`. Plain bookkeeping on the event loop's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dopd.engine.contract import Cached, EngineLoad, Job, JobEnd, JobOutput, Logprobs, uncached_tokens

# vLLM's FinishReason, by its text
ENDS: dict[str, JobEnd] = {"stop": "stop", "repetition": "stop", "length": "length", "abort": "aborted"}
# vLLM's EngineCoreEventType
QUEUED, SCHEDULED = 1, 2


@dataclass(slots=True)
class Running:
    """A job in EngineCore. `made` is the number of tokens so far."""

    job: Job
    request_id: str
    made: int = 0


@dataclass(slots=True)
class Jobs:
    """All jobs that have not ended, by job and by request."""

    by_job: dict[str, Running] = field(default_factory=dict)
    by_request: dict[str, Running] = field(default_factory=dict)

    def add(self, job: Job, request_id: str) -> None:
        self.by_job[job.job_id] = self.by_request[request_id] = Running(job, request_id)

    def remove(self, job_id: str) -> Running | None:
        running = self.by_job.pop(job_id, None)
        if running is not None:
            del self.by_request[running.request_id]
        return running

    def end_all(self, end: JobEnd, error: str = "") -> list[JobOutput]:
        """Every job ends, for one reason."""
        ended = [JobOutput(job_id, end=end, error=error) for job_id in self.by_job]
        self.by_job.clear()
        self.by_request.clear()
        return ended

    def output(self, made: Any, now_s: float, zero_s: float) -> JobOutput | None:
        """What one `EngineCoreOutput` says; None when its job has ended before. `zero_s`: monotonic time 0."""
        running = self.by_request.get(made.request_id)
        if running is None:
            return None
        job = running.job
        tokens = tuple(made.new_token_ids) if job.emit else ()
        running.made += len(made.new_token_ids)
        end = ENDS.get(str(made.finish_reason), "failed") if made.finish_reason is not None else None
        if end is not None:
            self.remove(job.job_id)
        return JobOutput(
            job.job_id,
            tokens,
            times_s=(now_s,) * len(tokens),
            end="length" if end == "stop" and not job.emit else end,
            cached=cached_of(made.prefill_stats, made.events or (), zero_s),
            error=f"vLLM ended the request: {made.finish_reason}" if end == "failed" else "",
            logprobs=logprobs_of(made.new_logprobs, job.sampling.logprobs) if tokens and made.new_logprobs else (),
        )

    def load(self, seen: EngineLoad, computed_tokens: int, chunk_tokens: int) -> EngineLoad:
        """`seen` (steps, KV, store: from EngineCore) with the figures of the jobs, which this side knows sooner."""
        unstarted = [running.job for running in self.by_job.values() if not running.made]
        fresh = sum(len(job.tokens) for job in unstarted if not job.continues)
        rests = sum(uncached_tokens(job, chunk_tokens) for job in unstarted if job.continues)
        decoding = [running for running in self.by_job.values() if running.made]
        running = min(seen.running, len(self.by_job))
        return EngineLoad(
            steps=seen.steps,
            running=running,
            waiting=len(self.by_job) - running,
            decoding=len(decoding),
            queued_prefill_tokens=max(0, fresh - computed_tokens) + rests,
            context_tokens=sum(len(r.job.tokens) + r.made for r in decoding),
            kv_used_tokens=seen.kv_used_tokens,
            kv_total_tokens=seen.kv_total_tokens,
            store_total_tokens=seen.store_total_tokens,
            store_ok=seen.store_ok,
            alive=seen.alive,
        )


def logprobs_of(lists: Any, most: int | None) -> Logprobs:
    """A row for each token, the token's own first. Rows are as wide as the batch's widest request asks for."""
    width = 1 + (most or 0)
    ids, values = lists.logprob_token_ids[:, :width].tolist(), lists.logprobs[:, :width].tolist()
    return tuple(zip(ids, values, strict=True))


def cached_of(stats: Any, events: Sequence[Any], zero_s: float) -> Cached | None:
    """vLLM counts the two origins apart, and sends them with the first output, beside the request's events.

    Events have the monotonic time of EngineCore's process, which all processes of a machine share. `QUEUED` comes
    first of all, and where KV is fetched once more at its begin and at its end.
    """
    if stats is None:
        return None
    scheduled_s = next((zero_s + event.timestamp for event in events if event.type == SCHEDULED), None)
    fetch = [zero_s + event.timestamp for event in events if event.type == QUEUED][1:]
    begin_s, end_s = (fetch[0], fetch[-1]) if len(fetch) > 1 else (None, None)
    return Cached(stats.num_local_cached_tokens, stats.num_external_cached_tokens, scheduled_s, begin_s, end_s)
