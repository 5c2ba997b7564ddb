"""An OpenAI-compatible server as a target: `/v1/completions`, streamed, over HTTP.

Consumes `Planned`s and what makes their prompts; produces filled-in `Record`s. Token times are when the bytes came in.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp.http import HttpProcessingError

from dopd_loadgen.completion_events import Reading, Unanswered, kind_of, message_of
from dopd_loadgen.drive import clock, zero_of
from dopd_loadgen.model import Planned, Record
from dopd_loadgen.sse import EventSplitter
from dopd_loadgen.target_ready import make_ready
from dopd_loadgen.trace_ids import trace_of

Prompt = Callable[[Planned], list[int] | str]

CONNECT_S = 10.0
KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn closes idle connections: a request must not meet a connection that just goes."""
TAIL_S = 1.0
"""What a server has to end the body after `[DONE]`, so that the connection can be used again."""
ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How to ask. `forced`: all tokens are to be made, whatever the model says. `extra_body` overrides every field.

    `seed` gives the trace ids. `ready_timeout_s` is how long `open` waits for a server that does not serve yet.
    """

    api_key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    path: str = "/v1/completions"
    temperature: float = 0.0
    forced: bool = True
    timeline: bool = True
    seed: int = 0
    ready_timeout_s: float = 30.0


class HttpTarget:
    """A `Target`. After `open`, `model` is the model asked for and `dropped` the fields that the server refuses."""

    def __init__(self, url: str, model: str, prompt: Prompt, settings: HttpSettings) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model, self.dropped = model, set[str]()
        self._prompt, self._settings = prompt, settings
        self.to = f"{self.url}{settings.path}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._now = clock()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers(),
        )
        try:
            await make_ready(self, self._settings.ready_timeout_s)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, planned: Planned, record: Record) -> None:
        zero_s = zero_of(record, self._now())
        try:
            await self._complete(planned, record, zero_s)
        except Unanswered as why:
            record.failure, record.detail = why.kind, why.detail
        except (aiohttp.ClientResponseError, HttpProcessingError) as error:
            record.failure, record.detail = "malformed", f"no HTTP: {error}"
        except (aiohttp.ClientError, OSError) as error:
            record.failure, record.detail = "connection", f"{type(error).__name__}: {error}"
        finally:
            if record.ended_s is None:
                record.ended_s = self._now() - zero_s

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page of the server. Raises OSError."""
        assert self._session is not None, "open() first"
        try:
            async with self._session.get(f"{self.url}{path}") as response:
                return response.status, await response.read()
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error

    async def _complete(self, planned: Planned, record: Record, zero_s: float) -> None:
        assert self._session is not None, "open() first"
        body = self._body(planned)
        # Either forces alone, as `min_tokens` is all of `max_tokens`.
        record.forced = not self.sends.isdisjoint(("ignore_eos", "min_tokens"))
        record.trace_id, traceparent = trace_of(self._settings.seed, record.index)
        record.sent_s = self._now() - zero_s
        async with self._session.post(self.to, data=body, headers={"traceparent": traceparent}) as response:
            record.status = response.status
            content = response.content
            if response.status != 200 or response.content_type == "application/json":
                raise Unanswered(kind_of(response.status), message_of(await _beginning(content)))
            splitter, reading = EventSplitter(), Reading(record)
            while not reading.over and (chunk := await content.readany()):
                at_s = self._now() - zero_s
                for data in splitter.feed(chunk):
                    reading.take(data, at_s)
            record.ended_s = self._now() - zero_s
            reading.settle()
            await _end(content)

    @property
    def sends(self) -> frozenset[str]:
        """The fields not all servers know that go out with each request."""
        forcing = {"ignore_eos", "min_tokens"} if self._settings.forced else set()
        return frozenset({"continuous_usage_stats", "stream_options"} | forcing) - self.dropped

    def _headers(self) -> dict[str, str]:
        settings = self._settings
        key = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        timeline = {"x-dopd-timeline": "1"} if settings.timeline else {}
        # Compressed events would come in late, and all at once.
        plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return {**plain, **key, **timeline, **settings.headers}

    def _body(self, planned: Planned) -> bytes:
        settings, osl = self._settings, planned.osl_tokens
        fields: dict[str, Any] = {
            "model": self.model,
            "prompt": self._prompt(planned),
            "max_tokens": osl,
            "temperature": settings.temperature,
            "stream": True,
        }
        continuous = {"continuous_usage_stats": True} if "continuous_usage_stats" in self.sends else {}
        optional = {"stream_options": {"include_usage": True, **continuous}, "ignore_eos": True, "min_tokens": osl}
        sent = {name: value for name, value in optional.items() if name in self.sends}
        return msgspec.json.encode({**fields, **sent, **settings.extra_body})


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    body = b""
    while len(body) < ERROR_BYTES and (chunk := await content.readany()):
        body += chunk
    return body


async def _end(content: aiohttp.StreamReader) -> None:
    """Until the body's end, so that the connection is used again; else it is closed, and the answer still whole."""
    if not content.at_eof():
        with suppress(aiohttp.ClientError, OSError):  # a TimeoutError is one
            async with asyncio.timeout(TAIL_S):
                while await content.readany():
                    pass
