"""Tokens on their way out: one `TokenBatch` per engine step and gateway, and a short memory for `Resend`."""

from array import array
from collections import defaultdict
from collections.abc import Sequence

from msgspec.structs import replace

from dopd.bus import Bus
from dopd.engine.contract import JobOutput
from dopd.errors import BusClosed
from dopd.worker.credit import Account
from dopd.worker.segment import Held, since
from dopd_proto.base import pack_tokens
from dopd_proto.request import Failure, Run, RunEnd, Timing, TokenBatch
from dopd_proto.subjects import TOKENS, Address


class Outbox:
    """Collects the runs of a step and sends them."""

    def __init__(self, bus: Bus, worker_id: str, incarnation: str, accounts: dict[str, Account]) -> None:
        self._bus = bus
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._accounts = accounts
        self._runs: dict[str, list[Run]] = defaultdict(list)
        self._addresses: dict[str, Address[TokenBatch]] = {}

    def add(self, gateway_id: str, run: Run) -> None:
        """Put a run into the batch of this step."""
        self._runs[gateway_id].append(run)

    def flush(self) -> None:
        """Send what was added, one message per gateway."""
        runs, self._runs = self._runs, defaultdict(list)
        # Sorted, so that who hears first does not hang on whose request is first in the step.
        for gateway_id, batch in sorted(runs.items()):
            account = self._accounts.get(gateway_id)
            if account is None:  # the gateway's lease has lapsed; nobody reads this
                continue
            account.batches += 1
            to = self._addresses.get(gateway_id)
            if to is None:
                to = self._addresses[gateway_id] = TOKENS.at(gateway_id=gateway_id, worker_id=self._worker_id)
            message = TokenBatch(
                worker_id=self._worker_id, incarnation=self._incarnation, seq=account.batches, runs=tuple(batch)
            )
            try:
                self._bus.publish(to, message)
            except BusClosed:  # only while the process ends
                return


def run_of(held: Held, output: JobOutput, end: RunEnd | None, missed_tokens: int, timing: Timing | None) -> Run:
    """The message for one engine output, which has been appended to `held` already."""
    work, cached = held.work, output.cached
    run = Run(
        request_id=work.request_id,
        attempt=work.attempt,
        index=held.index + len(held.made) - len(output.tokens),
        tokens=pack_tokens(output.tokens),
        times_s=output.times_s,
        end=end,
        started=cached is not None,
        local_cached_tokens=cached.local_tokens if cached else 0,
        store_cached_tokens=cached.store_tokens if cached else 0,
        missed_tokens=missed_tokens,
        failure=_engine_failure(output.error) if end == "failed" else None,
        timing=timing,
    )
    return _with_logprobs(run, output.logprobs) if output.logprobs else run


def run_again(held: Held, index: int, end: RunEnd | None) -> Run:
    """Everything from output index `index` on once more."""
    tokens, times = since(held, index)
    run = Run(
        request_id=held.work.request_id,
        attempt=held.work.attempt,
        index=max(index, held.index),
        tokens=pack_tokens(tokens),
        times_s=tuple(times),
        end=end,
        started=held.started,
        timing=held.timing if held.told else None,  # before the first run it would lack what that one knows
    )
    likely = held.logprobs[len(held.logprobs) - len(tokens) :] if tokens else []
    return _with_logprobs(run, likely) if likely else run


def _with_logprobs(run: Run, rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Run:
    values = array("f", [value for _, row in rows for value in row])
    ids = pack_tokens([token for ids, _ in rows for token in ids])
    return replace(run, logprob_ids=ids, logprobs=values.tobytes())


def _engine_failure(detail: str) -> Failure:
    return Failure(code="engine_error", message=detail or "the engine failed", status=503, retryable=True)
