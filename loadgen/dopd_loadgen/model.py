"""What a run is made of: the requests that are planned, what became of each, and the run that holds them.

`workload` makes `Planned`s, `drive` turns them into `Record`s by way of a `Target`, `report` reads a `Run`. Every time
of a record is in seconds of the client's clock since the start of the run, so latencies never mix two clocks.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

Failure = Literal[
    "", "rejected", "client_error", "server_error", "connection", "malformed", "truncated", "short", "timeout", "unsent"
]
"""Why a request does not count as completed.

`rejected`: 429 or 503, the server said no. `client_error`, `server_error`: any other 4xx, 5xx. `connection`: refused,
reset, or no broker. `malformed`: an event that cannot be read. `truncated`: the stream ended without a finish. `short`:
it finished with fewer tokens than were forced. `timeout`: no end before the deadline. `unsent`: the run was broken off
before it was sent; such a request is left out of every figure but its own count.
"""

Api = Literal["http", "nats", "virtual"]


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a schedule: `at_s` is the intended send, from the start of the run.

    `blocks` are the identities of the prompt's leading blocks of `block_tokens` tokens each: equal ids are equal text,
    so prefixes are shared as in the trace. Beyond them, and where there are none, the prompt is like no other. `text`
    is a prompt that is given word by word; then `isl_tokens` is its length as counted when it was read. `phase` names
    the part of a sequence or the client of a mixture.
    """

    index: int
    at_s: float
    isl_tokens: int
    osl_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 512
    text: str = ""
    phase: str = ""


class Phase(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of a request inside the served system, on that system's clock (seconds since the epoch).

    `where` is the process. Start and end are of one clock; phases of different processes need not be.
    """

    name: str
    start_s: float
    end_s: float
    where: str


class Record(msgspec.Struct):
    """What became of one request.

    `times_s[i]` is when batch i of tokens came in, `counts[i]` how many tokens it held. `osl_tokens` is what was asked
    for; with `forced` the server had to make them all. `prompt_tokens` is the server's count (0: it did not say).
    """

    index: int
    isl_tokens: int
    osl_tokens: int
    intended_s: float
    phase: str = ""
    forced: bool = True
    sent_s: float | None = None
    ended_s: float | None = None
    times_s: list[float] = []
    counts: list[int] = []
    failure: Failure = "unsent"
    detail: str = ""
    status: int = 0
    finish_reason: str = ""
    prompt_tokens: int = 0
    request_id: str = ""
    trace_id: str = ""
    timeline: tuple[Phase, ...] = ()


class RoleCount(msgspec.Struct, frozen=True, array_like=True):
    """Workers per role from `at_s` on."""

    at_s: float
    n_prefill: int
    n_decode: int
    n_mixed: int = 0


class QueueSample(msgspec.Struct, frozen=True, array_like=True):
    """What waits and runs in the whole cluster at `at_s`: requests at the gateways, tokens of prompt that workers have
    and have not computed, requests that decode, and tokens of their context."""

    at_s: float
    waiting: int
    prefill_tokens: int
    decoding: int
    context_tokens: int


class Run(msgspec.Struct):
    """A finished (or broken-off) run: where the load went, how it was made, and all its records.

    `span_s` is the length of the schedule, `ended_s` when the last request was settled. `warmup_s` and `cooldown_s` are
    cut off the schedule's two ends when figures are made. `gpus` is 0 when it is not known; `gpu_seconds` counts those
    held during the schedule. `started_unix_s` is the epoch time of the run's zero.
    """

    label: str
    api: Api
    target: str
    model: str
    seed: int
    started_unix_s: float
    span_s: float
    ended_s: float
    slo_ttft_s: float
    slo_tpot_s: float
    records: list[Record]
    slo_e2e_s: float | None = None
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    max_concurrency: int | None = None
    gpus: int = 0
    gpu_seconds: float = 0.0
    interrupted: bool = False
    workload: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    roles: list[RoleCount] = []
    queues: list[QueueSample] = []


class Target(Protocol):
    """Something that can be asked for a completion. One object may have many requests under way.

    `model` is the one asked for, at the latest when it is open.
    """

    model: str

    async def open(self) -> None:
        """Connect and check that it serves. Raises LoadError, which says what to do."""

    async def send(self, planned: Planned, record: Record) -> None:
        """Send it now and fill in the record, up to the failure ("" for none) and `ended_s`. Raises nothing."""

    async def close(self) -> None:
        """Let go of every connection. May be called twice."""
