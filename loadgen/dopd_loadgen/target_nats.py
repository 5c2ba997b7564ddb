"""DOPD itself as a target, over its bus: `dopd.v1.generate`, streamed to our inbox.

Consumes `Planned`s and what makes their prompts; produces filled-in `Record`s like those of the HTTP target.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dopd import config as configs
from dopd.bus import Bus
from dopd.bus.common import shown
from dopd.errors import BusError, LoadError, PayloadTooLarge
from dopd_loadgen.completion_events import Unanswered, kind_of
from dopd_loadgen.drive import clock, zero_of
from dopd_loadgen.model import Phase, Planned, Record
from dopd_loadgen.trace_ids import trace_of
from dopd_proto.request import Chunk, Completion, Failure, Generate
from dopd_proto.subjects import GENERATE

Prompt = Callable[[Planned], list[int] | str]

PROBE_S = 30.0
PROBE_TOKENS = 8  # a text of one token there is not where a BOS is put in front
RETRY_S = 0.5
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """How to ask; as for HTTP. `timeout_s` goes with each request: nobody tells a gateway that a caller has gone."""

    temperature: float = 0.0
    forced: bool = True
    timeline: bool = True
    seed: int = 0
    timeout_s: float = 600.0
    ready_timeout_s: float = 30.0


async def connect(url: str) -> Bus:
    """The real bus; its CA is that of DOPD__CLUSTER__NATS_CA_FILE. Raises BusError or ConfigError."""
    from dopd.bus.nats_bus import NatsBus  # the only client of NATS; keeps HTTP runs free of it

    return await NatsBus.connect(url, name="loadgen", ca_file=configs.load().cluster.nats_ca_file)


class NatsTarget:
    """A `Target`. `dial` makes the bus."""

    def __init__(
        self,
        url: str,
        model: str,
        prompt: Prompt,
        settings: NatsSettings,
        dial: Callable[[str], Awaitable[Bus]] = connect,
    ) -> None:
        self.url, self.model = url, model
        self._prompt, self._settings, self._dial = prompt, settings, dial
        self._bus: Bus | None = None

    async def open(self) -> None:
        if not self.model:
            raise LoadError(shown(self.url), "over NATS nobody lists models; name the one to ask for")
        self._now = clock()
        deadline_s = self._now() + self._settings.ready_timeout_s
        try:
            self._bus = await self._dial(self.url)
        except BusError as error:
            raise LoadError(shown(self.url), f"{error}; is the broker up, and is this its address?") from error
        try:
            await self._make_ready(deadline_s)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._bus is not None:
            await self._bus.drain()

    async def send(self, planned: Planned, record: Record) -> None:
        zero_s = zero_of(record, self._now())
        try:
            await self._complete(planned, record, zero_s)
        except Unanswered as why:
            record.failure, record.detail = why.kind, why.detail
        except PayloadTooLarge as error:
            record.failure, record.detail, record.status = "client_error", error.message, error.status
        except BusError as error:
            record.failure, record.detail = "connection", f"{type(error).__name__}: {error}"
        finally:
            record.ended_s = self._now() - zero_s

    async def _complete(self, planned: Planned, record: Record, zero_s: float) -> None:
        assert self._bus is not None, "open() first"
        settings, osl = self._settings, planned.osl_tokens
        record.trace_id, traceparent = trace_of(settings.seed, record.index)
        record.forced = settings.forced
        request = Generate(
            model=self.model,
            prompt=self._prompt(planned),
            max_tokens=osl,
            min_tokens=osl if settings.forced else 0,
            ignore_eos=settings.forced,
            temperature=settings.temperature,
            stream=True,
            # Four bytes for each token: no other field of a chunk tells how many it holds.
            return_tokens=True,
            timeout_s=settings.timeout_s,
            timeline=settings.timeline,
            traceparent=traceparent,
        )
        over: asyncio.Future[Completion | Failure] = asyncio.get_running_loop().create_future()
        chunks = 0

        def take(message: Chunk | Completion | Failure) -> None:
            nonlocal chunks
            if not isinstance(message, Chunk):
                if not over.done():
                    over.set_result(message)
                return
            chunks += 1
            if message.tokens:
                record.times_s.append(self._now() - zero_s)
                record.counts.append(len(message.tokens) // TOKEN_BYTES)

        record.sent_s = self._now() - zero_s
        replies: tuple[type[Chunk | Completion | Failure], ...] = (Chunk, Completion, Failure)
        stream = await self._bus.stream(GENERATE.at(), request, replies, take)
        try:
            settle(record, await over, chunks)
        finally:
            await stream.stop()

    async def _make_ready(self, deadline_s: float) -> None:
        """Until a request of one token is answered. Raises LoadError."""
        while True:
            record = Record(-1, isl_tokens=PROBE_TOKENS, osl_tokens=1, intended_s=0.0)
            try:
                async with asyncio.timeout(PROBE_S):
                    await self.send(Planned(0, 0.0, isl_tokens=PROBE_TOKENS, osl_tokens=1), record)
            except TimeoutError:
                record.failure, record.detail = "timeout", f"no answer within {PROBE_S:g} s"
            if not record.failure:
                return
            later = record.failure in ("connection", "timeout", "rejected")
            if not later or self._now() + RETRY_S > deadline_s:
                said = f"a request of one token failed, {record.failure}: {record.detail}"
                raise LoadError(shown(self.url), f"{said}; is a gateway up?" if later else said)
            await asyncio.sleep(RETRY_S)


def settle(record: Record, last: Completion | Failure, chunks: int) -> None:
    """Take the end of a stream of which so many chunks came in. Raises Unanswered when the answer is not whole."""
    if isinstance(last, Failure):
        record.status = last.status
        raise Unanswered(kind_of(last.status), last.message)
    record.status = 200
    record.request_id, record.finish_reason = last.request_id, last.finish_reason
    record.prompt_tokens = last.usage.prompt_tokens
    record.timeline = tuple(Phase(*phase) for phase in last.timeline)
    if chunks < last.seq:
        raise Unanswered("truncated", f"{last.seq - chunks} of {last.seq} chunks are missing")
    total = last.usage.completion_tokens
    if record.forced and total < record.osl_tokens:
        raise Unanswered("short", f"{total} of {record.osl_tokens} tokens, finish reason {last.finish_reason!r}")
    record.failure = ""
