"""An emulated cluster as `dopd up --demo` starts it, with clients on NATS that know what each answer must be.

Consumes settings; produces `Live`: requests, role changes, the workers' states, and the processes to break.
"""

import asyncio
import os
import random
import signal
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dopd import config as configs
from dopd.bus.nats_bus import NatsBus
from dopd.config import Config
from dopd.engine.sim.tokens import VOCABULARY, draw, prefix_state
from dopd.errors import DopdError
from dopd.supervisor import http
from dopd.supervisor.ports import this_or_free
from dopd.supervisor.ready import Cluster, http_ok
from dopd.supervisor.spec import Probe
from dopd.supervisor.stack import gateway_url
from dopd.supervisor.state import Process
from dopd_proto.base import DrainMode, Role, unpack_tokens
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.request import Chunk, Completion, Failure, Generate
from dopd_proto.subjects import GENERATE, ROLES
from tests.e2e.running import Running
from tests.nats_server import server_binary

Truth = Callable[[list[int], int], list[int]]
OTHER: dict[Role, Role] = {"prefill": "decode", "decode": "prefill"}


def expected(prompt: list[int], count: int) -> list[int]:
    """The greedy output of the emulated model."""
    return draw(prefix_state(array("I", prompt)), 0, count)[0]


def demo(folder: Path, **settings: object) -> Running:
    """`dopd up --demo --no-load`; settings as `SECTION__KEY`. Roles change only when they are told to, unless a policy
    is named."""
    server_binary()
    named = {f"DOPD__{key.upper()}": str(value) for key, value in settings.items()}
    ours = {
        "DOPD__CLUSTER__STATE_DIR": str(folder),
        "DOPD__GATEWAY__PORT": str(this_or_free("127.0.0.1", 0)),
        "DOPD__POLICY__NAME": "simple",
    }
    return Running(["dopd.cli", "up", "--demo", "--no-load"], folder, {**ours, **named})


@dataclass
class Asked:
    """One request and what came back."""

    prompt: list[int]
    max_tokens: int
    deadline_s: float
    truth: Truth | None = expected
    tokens: list[int] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    failure: Failure | None = None
    broken: str = ""
    ends: int = 0
    ended_s: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def wrong(self) -> str:
        """What is wrong; empty when nothing is. A retryable error in time is not wrong."""
        if self.ends != 1:
            return f"{self.ends} ends after {len(self.tokens)} tokens"
        if self.ended_s > self.deadline_s + 1.0:
            return f"ended {self.ended_s - self.deadline_s:.1f} s after its deadline"
        if self.truth is not None and self.tokens != self.truth(self.prompt, len(self.tokens)):
            return "its tokens are not those of the model"
        if self.broken:
            return ""
        if self.failure is not None:
            return "" if self.failure.retryable else f"failed for good: {self.failure.message}"
        return "" if len(self.tokens) == self.max_tokens else f"{len(self.tokens)} of {self.max_tokens} tokens"


class Live:
    """Clients of a running cluster."""

    def __init__(self, up: Running, bus: NatsBus, config: Config) -> None:
        self.up, self.bus = up, bus
        self.model, self.url = configs.served_name(config.engine), gateway_url(config)
        self.cluster = Cluster()
        self.asked: list[Asked] = []
        self.rng = random.Random("live")
        # Of real engines the truth is found afterwards.
        self.truth: Truth | None = expected
        self.vocabulary = VOCABULARY
        self._tasks: set[asyncio.Task[object]] = set()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # --- requests -----------------------------------------------------------------------------------------------

    async def ask(
        self, isl: int, osl: int, *, timeout_s: float = 60.0, stream: bool = True, temperature: float = 0.0
    ) -> Asked:
        """Send one request; `done` is set at its end."""
        asked = self._asked(isl, osl, timeout_s, temperature)
        request = Generate(
            model=self.model, prompt=asked.prompt, max_tokens=osl, temperature=temperature, ignore_eos=True,
            stream=stream, return_tokens=True, timeout_s=timeout_s,
        )  # fmt: skip
        reading = await self.bus.stream(
            GENERATE.at(), request, (Chunk, Completion, Failure), lambda message: self._take(asked, message)
        )
        self._spawn(self._end(asked, reading, timeout_s))
        return asked

    def _asked(self, isl: int, osl: int, timeout_s: float, temperature: float) -> Asked:
        prompt = self.rng.choices(range(3, self.vocabulary), k=isl)
        asked = Asked(prompt, osl, self.now() + timeout_s, self.truth if temperature == 0.0 else None)
        self.asked.append(asked)
        return asked

    def _take(self, asked: Asked, message: Chunk | Completion | Failure) -> None:
        if isinstance(message, Chunk) and message.index != len(asked.tokens):
            asked.ends += 100  # shows as wrong
        if not isinstance(message, Failure):
            asked.tokens += unpack_tokens(message.tokens)
            asked.stamps.append(self.now())
        if isinstance(message, Chunk):
            return
        asked.failure = message if isinstance(message, Failure) else None
        asked.ends += 1
        asked.ended_s = self.now()
        asked.done.set()

    async def ask_http(
        self,
        isl: int,
        osl: int,
        *,
        url: str = "",
        timeout_s: float = 60.0,
        stream: bool = True,
        temperature: float = 0.0,
    ) -> Asked:
        """The same over HTTP, whose connection does not pass the broker; `url` names a gateway other than the first."""
        asked = self._asked(isl, osl, timeout_s, temperature)
        wish = {
            "model": self.model, "prompt": asked.prompt, "max_tokens": osl, "temperature": temperature,
            "ignore_eos": True, "stream": stream, "return_token_ids": True, "timeout_s": timeout_s,
        }  # fmt: skip
        self._spawn(self._read_http(asked, url or self.url, msgspec.json.encode(wish), timeout_s))
        return asked

    async def _read_http(self, asked: Asked, url: str, body: bytes, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s + 5.0), http.request(f"{url}/v1/completions", body) as response:
                async for line in response.lines():
                    self._take_line(asked, response.status, line.removeprefix(b"data: ").strip())
            if not asked.ends:
                asked.broken = "the answer ended in the middle"
        except (OSError, ValueError, IndexError, EOFError) as error:
            asked.broken = f"{type(error).__name__}: {error}"
        asked.ends += bool(asked.broken)
        asked.ended_s = self.now()
        asked.done.set()

    def _take_line(self, asked: Asked, status: int, line: bytes) -> None:
        if not line or line == b"[DONE]":
            return
        message = msgspec.json.decode(line)
        if error := message.get("error"):
            late = error["code"] in ("unavailable", "deadline_exceeded")
            asked.failure = Failure(code=error["code"], message=error["message"], status=status, retryable=late)
            asked.ends += 1
            return
        choice = message["choices"][0]
        asked.tokens += choice["token_ids"]
        asked.stamps.append(self.now())
        asked.ends += choice["finish_reason"] is not None

    async def _end(self, asked: Asked, reading: object, timeout_s: float) -> None:
        """A client waits a little longer than the deadline, then it gives up."""
        try:
            async with asyncio.timeout(timeout_s + 5.0):
                await asked.done.wait()
                await asyncio.sleep(0.5)  # whatever comes after the end would be wrong
        except TimeoutError:
            asked.ended_s = self.now()
            asked.done.set()
        await reading.stop()  # type: ignore[attr-defined]

    def _spawn(self, work: object) -> asyncio.Task[object]:
        task = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def closed_load(
        self, clients: int, isl: int, osl: int, stream_share: float = 0.5, **more: Any
    ) -> AsyncIterator[None]:
        """So many clients, each with one request at a time; at the end all requests under way are awaited."""
        going = True

        async def client() -> None:
            while going:
                asked = await self.ask(isl, osl, stream=self.rng.random() < stream_share, **more)
                await asked.done.wait()

        tasks = [self._spawn(client()) for _ in range(clients)]
        try:
            yield
        finally:
            going = False
            await asyncio.wait(tasks)
            for task in tasks:
                task.result()

    @asynccontextmanager
    async def open_load(self, rate: float, isl: int, osl: int, **more: Any) -> AsyncIterator[None]:
        """Poisson arrivals over HTTP; at the end all requests under way are awaited."""
        first = len(self.asked)

        async def arrivals() -> None:
            # By the clock and not by sleeps: a late wake-up must not lower the rate.
            next_s = self.now()
            while True:
                next_s += self.rng.expovariate(rate)
                await asyncio.sleep(next_s - self.now())
                await self.ask_http(isl, osl, stream=self.rng.random() < 0.5, **more)

        task = self._spawn(arrivals())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            for asked in self.asked[first:]:
                await asked.done.wait()

    async def capacity(self, clients: int, isl: int, osl: int, warm_s: float, measured_s: float) -> float:
        """Requests per second in a closed loop."""
        async with self.closed_load(clients, isl, osl):
            await asyncio.sleep(warm_s)
            before = self.answered()
            await asyncio.sleep(measured_s)
            done = self.answered() - before
        return done / measured_s

    def answered(self) -> int:
        """Requests that have ended."""
        return sum(asked.ends for asked in self.asked)

    def verdict(self) -> list[str]:
        """What is wrong with any request, counted."""
        wrong = Counter(x for asked in self.asked if (x := asked.wrong()))
        return [f"{count} x {what}" for what, count in wrong.items()]

    def failures(self) -> Counter[str]:
        return Counter(asked.failure.message for asked in self.asked if asked.failure is not None)

    # --- workers ------------------------------------------------------------------------------------------------

    def in_flight(self, worker_id: str) -> int:
        state = self.cluster.states[worker_id]
        return state.running + state.waiting

    def with_role(self, role: Role) -> list[str]:
        return sorted(w for w, state in self.cluster.states.items() if state.role == role and state.phase == "serving")

    async def until(self, what: Callable[[], object], limit_s: float, why: str = "") -> None:
        end_s = self.now() + limit_s
        while not what():
            assert self.now() < end_s, f"not within {limit_s} s: {why}"
            await asyncio.sleep(0.02)

    async def until_ready(self, url: str) -> None:
        """Until this gateway knows a worker."""
        await self._until_says(http_ok(f"{url}/ready"))

    async def until_planner(self, workers: int) -> None:
        """Until a planner leads that has heard so many workers."""

        async def leads() -> bool:
            with suppress(DopdError):
                return len((await self.roles("list")).workers) == workers
            return False

        await self._until_says(leads)

    async def _until_says(self, probe: Probe) -> None:
        for _ in range(200):
            if await probe():
                return
            await asyncio.sleep(0.1)
        raise AssertionError("not ready within 20 s")

    async def set_role(self, worker_id: str, role: Role, drain: DrainMode, until: str = "accepting") -> RolesReply:
        """As `dopd roles set` does."""
        request = RolesRequest(
            action="set", worker_id=worker_id, role=role, drain=drain, until=until, timeout_s=60.0  # type: ignore[arg-type]
        )  # fmt: skip
        return await self.bus.request(ROLES.at(), request, (RolesReply,), 65.0)

    async def roles(self, action: str, worker_id: str = "") -> RolesReply:
        request = RolesRequest(action=action, worker_id=worker_id)  # type: ignore[arg-type]
        return await self.bus.request(ROLES.at(), request, (RolesReply,), 10.0)

    def kv_misses(self) -> int:
        return sum(state.kv_misses for state in self.cluster.states.values())

    # --- processes ----------------------------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        found = self.up.state.process(name)
        assert found is not None, f"{name} does not run"
        return found

    def send(self, name: str, number: signal.Signals) -> int:
        process = self.process(name)
        process.send(number)
        return process.pid

    def freeze(self, name: str) -> int:
        return self.send(name, signal.SIGSTOP)

    @staticmethod
    def signal(pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    def thaw(self, pid: int) -> None:
        self.signal(pid, signal.SIGCONT)

    def log(self, name: str) -> str:
        return (self.up.state.logs / f"{name}.log").read_text(errors="replace")

    async def idle(self, limit_s: float = 20.0) -> None:
        """Until no worker holds anything."""
        await self.until(
            lambda: all(
                state.running + state.waiting + state.kv_used_tokens == 0 for state in self.cluster.states.values()
            ),
            limit_s,
            "workers hold something though all requests have ended",
        )


@asynccontextmanager
async def live(up: Running) -> AsyncIterator[Live]:
    """Clients of a cluster that is up."""
    config = configs.load(up.state.config_file, env={})
    bus = await NatsBus.connect(config.cluster.broker_url, name="test")
    try:
        clients = Live(up, bus, config)
        await clients.cluster.follow(bus)
        total = config.cluster.prefill + config.cluster.decode
        await clients.until(lambda: len(clients.cluster.states) == total, 10.0, "all workers speak")
        yield clients
    finally:
        await bus.drain(timeout_s=1.0)
