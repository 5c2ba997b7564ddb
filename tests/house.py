"""A whole cluster in virtual time with clients, for fault runs: what was asked, what came back, what is left over.

Consumes a seed and a scenario (a coroutine that breaks things while requests run); produces `Answer`s, and a list of
everything that is wrong afterwards. Emulated tokens are a function of the whole prefix, so the expected output of a
prompt is known.
"""

import asyncio
import random
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from dopd.bus.memory import Fault
from dopd.config import ClusterConfig, Config, EngineConfig, GatewayConfig, PlannerConfig, PolicyConfig, WorkerConfig
from dopd.engine.sim.tokens import draw, prefix_state
from dopd.errors import RequestError
from dopd.perf.profile import Profile, named
from dopd.runtime.clock import Runtime
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd.worker.host import Worker
from dopd_gateway.service import Gateway
from dopd_gateway.stream import Inbound
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.base import DrainMode, Message, Role
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.request import Sampling
from dopd_proto.subjects import ROLES

TIMEOUT_S = 60.0
OTHER: dict[Role, Role] = {"prefill": "decode", "decode": "prefill"}
CONFIG = Config(
    cluster=ClusterConfig(prefill=2, decode=2),
    policy=PolicyConfig(name="simple"),
    gateway=GatewayConfig(window_s=1.0),
    planner=PlannerConfig(round_s=0.2, command_timeout_s=20.0),
    worker=WorkerConfig(resend_buffer_s=5.0, max_prefills=8, stall_s=6.0),
    engine=EngineConfig(sim_store_tokens=400_000),
)


def expected(prompt: list[int], count: int) -> list[int]:
    """The greedy output of the emulated model."""
    return draw(prefix_state(array("I", prompt)), 0, count)[0]


def small_profile() -> Profile:
    """An emulated GPU whose memory is soon full and whose steps are slow enough to be hit in the middle."""
    return replace(named("h200-llama-3.1-8b-fp8-tp1"), kv_total_tokens=40_000, max_running=32, decode_fixed_s=12e-3)


@dataclass
class Answer:
    """What one client saw. `ends` counts finishes and errors."""

    prompt: list[int]
    max_tokens: int
    gateway_id: str
    asked_s: float
    deadline_s: float
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    ends: int = 0
    error: RequestError | None = None
    left: bool = False

    def wrong(self, errors_allowed: bool) -> str:
        """What is wrong with it; empty when nothing is."""
        good = expected(self.prompt, len(self.tokens))
        if self.tokens != good:
            at = next(i for i, (a, b) in enumerate(zip(self.tokens, good, strict=True)) if a != b)
            return f"token {at} of {len(self.tokens)} is wrong"
        if self.left:
            return ""
        if self.ends != 1:
            return f"{self.ends} ends, {len(self.tokens)} of {self.max_tokens} tokens"
        if self.ended_s > self.deadline_s + 1e-6:
            return f"ended {self.ended_s - self.deadline_s} s after its deadline"
        if self.error is not None:
            return "" if errors_allowed and self.error.retryable else f"failed: {self.error!r}"
        return "" if len(self.tokens) == self.max_tokens else f"{len(self.tokens)} of {self.max_tokens} tokens"


class House:
    """The cluster, its clients, and the ways to break it."""

    def __init__(
        self,
        seed: int,
        config: Config = CONFIG,
        together: bool = False,
        latency_s: float = 2e-4,
        runtime: Runtime | None = None,
    ) -> None:
        self.rng = random.Random(f"house/{seed}")
        self.runtime = runtime or VirtualRuntime(seed)
        self.cluster = LocalCluster(
            self.runtime, config, profile=small_profile(), together=together, latency_s=latency_s
        )
        self.answers: list[Answer] = []
        self.tasks: dict[asyncio.Task[None], Answer] = {}
        self.problems: list[str] = []

    # --- load ---------------------------------------------------------------------------------------------------

    def ask(self, gateway: Gateway, isl: int, osl: int, timeout_s: float = TIMEOUT_S) -> asyncio.Task[None]:
        """One client."""
        now_s = self.runtime.now()
        prompt = [self.rng.randrange(3, 32_000) for _ in range(isl)]
        answer = Answer(prompt, osl, gateway.gateway_id, now_s, now_s + timeout_s)
        self.answers.append(answer)
        task = asyncio.get_running_loop().create_task(self._read(gateway, answer))
        self.tasks[task] = answer
        return task

    async def _read(self, gateway: Gateway, answer: Answer) -> None:
        sampling = Sampling(max_tokens=answer.max_tokens, temperature=0.0, ignore_eos=True)
        stream = gateway.open(Inbound(answer.prompt, sampling, Slo(), answer.deadline_s))
        try:
            async for piece in stream:
                if piece.index != len(answer.tokens):
                    self.problems.append(f"piece at {piece.index}, but {len(answer.tokens)} tokens were there")
                answer.tokens += piece.tokens
                answer.times_s += piece.times_s
                answer.ends += piece.end is not None
        except RequestError as error:
            answer.error = error
            answer.ends += 1
        except asyncio.CancelledError:
            if not answer.left:  # else the gateway has gone, and nobody is there to be told
                answer.left = True
                stream.cancel()
            raise
        finally:
            answer.ended_s = self.runtime.now()

    async def load(self, requests: int, rate: float) -> None:
        """Poisson arrivals, dealt out to the gateways that are there."""
        for _ in range(requests):
            await asyncio.sleep(self.rng.expovariate(rate))
            gateways = [self.cluster.gateways[g] for g in sorted(self.cluster.gateways)]
            self.ask(self.rng.choice(gateways), self.rng.randint(20, 1500), self.rng.randint(1, 120))

    async def answered(self) -> None:
        """Wait until no client waits."""
        while waiting := [task for task in self.tasks if not task.done()]:
            await asyncio.wait(waiting)

    # --- faults -------------------------------------------------------------------------------------------------

    def fault(self, fault: Fault | None) -> None:
        """What happens to messages from now on."""
        self.cluster.broker.fault = fault

    def worker_with(self, role: Role, busy: bool = True) -> str:
        """Some worker of this role, with work if there is one."""
        ids = [w for w, worker in sorted(self.cluster.workers.items()) if worker.role.role == role]
        return self.rng.choice([w for w in ids if self.cluster.workers[w]._held or not busy] or ids)

    async def until(self, what: Callable[[], object], limit_s: float = 10.0) -> bool:
        """Look every millisecond."""
        for _ in range(int(limit_s / 1e-3)):
            if what():
                return True
            await asyncio.sleep(1e-3)
        return False

    async def restart(self, worker_id: str, role: Role, after_s: float) -> Worker:
        """A new life under the old name."""
        await asyncio.sleep(after_s)
        return await self.cluster.add_worker(worker_id, role)

    def kill_gateway(self, gateway_id: str) -> None:
        """Its clients' connections break."""
        for task, answer in self.tasks.items():
            if answer.gateway_id == gateway_id and not task.done():
                answer.left = True
                task.cancel()
        self.cluster.kill_gateway(gateway_id)

    async def set_role(self, worker_id: str, role: Role, drain: DrainMode, timeout_s: float = 20.0) -> str:
        """As a person does; the reason when it was refused. The pin goes away again."""
        bus = self.cluster.broker.connect("person")
        try:
            wish = RolesRequest(
                action="set", worker_id=worker_id, role=role, drain=drain, until="drained", timeout_s=timeout_s
            )
            await bus.request(ROLES.at(), wish, (RolesReply,), timeout_s + 1.0)
            unpin = RolesRequest(action="unpin", worker_id=worker_id)
            await bus.request(ROLES.at(), unpin, (RolesReply,), 5.0)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await bus.drain()
        return ""

    async def flips(self, count: int, drains: Iterable[DrainMode] = ("overlap", "migrate", "wait")) -> int:
        """Random role changes one after the other; how many were made."""
        made = 0
        for _ in range(count):
            worker_id = self.rng.choice(sorted(self.cluster.workers))
            role = OTHER[self.cluster.workers[worker_id].role.role]
            made += not await self.set_role(worker_id, role, self.rng.choice(sorted(drains)))
            await asyncio.sleep(self.rng.uniform(0.0, 0.3))
        return made

    async def watch_pools(self) -> None:
        """Each pool keeps a worker."""
        while True:
            for pool in OTHER:
                if not any(worker.role.role == pool for worker in self.cluster.workers.values()):
                    self.problems.append(f"no {pool} worker at {self.runtime.now():.3f} s")
            await asyncio.sleep(5e-3)

    # --- afterwards ---------------------------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        """What should not be there when all requests have ended and all leases and buffers have run out."""
        return [
            *(f"{w}: {x}" for w in sorted(self.cluster.workers) for x in self._left_at_worker(w)),
            *(f"{g}: {x}" for g in sorted(self.cluster.gateways) for x in self._left_at_gateway(g)),
        ]

    def _left_at_worker(self, worker_id: str) -> list[str]:
        worker, engine = self.cluster.workers[worker_id], self.cluster.engines[worker_id]
        core = engine._core
        load = engine.load()
        found = {
            "held": worker._held, "ended": worker._ended, "void": worker._void,
            "running": load.running, "waiting": load.waiting, "looking": engine._looking,
            "used blocks": core.pool.used, "draining": worker.role.draining, "next role": worker.role.next_role,
            "accounts of lost gateways": set(worker._accounts) - set(self.cluster.gateways),
        }  # fmt: skip
        return [f"{name}: {value}" for name, value in found.items() if value]

    def _left_at_gateway(self, gateway_id: str) -> list[str]:
        gateway = self.cluster.gateways[gateway_id]
        found: dict[str, Any] = {
            "requests": gateway._requests, "streams": gateway._streams, "timers": gateway._timers,
            "waiting": gateway._waiting, "tasks": len(gateway._tasks) - 2,
            "workers unknown": set(self.cluster.workers) - set(gateway.fleet.workers),
            "dead workers": set(gateway.fleet.workers) - set(self.cluster.workers),
        }  # fmt: skip
        for worker_id, known in sorted(gateway.fleet.workers.items()):
            found[f"open at {worker_id}"] = known.open
            found[f"open tokens at {worker_id}"] = known.open_prefill_tokens
            found[f"no credit at {worker_id}"] = gateway.fleet.credit(known) <= 0
            found[f"{worker_id} not serving"] = not known.serving()
            shown = next(w for w in gateway.cluster().workers if w.worker_id == worker_id)
            found[f"{worker_id} in another role"] = shown.role != self.cluster.workers[worker_id].role.role
        return [f"{name}: {value}" for name, value in found.items() if value]

    def kv_misses(self) -> int:
        return sum(worker._missed for worker in self.cluster.workers.values())


Scenario = Callable[[House], Awaitable[object]]


def run_house(
    scenario: Scenario,
    seed: int,
    *,
    requests: int = 30,
    rate: float = 25.0,
    gateways: int = 1,
    config: Config = CONFIG,
    together: bool = False,
    errors_allowed: bool = False,
    pools_kept: bool = True,
) -> House:
    """The scenario beside a load, until all is answered and has settled. Raises AssertionError with what is wrong."""
    house = House(seed, config, together)
    run_virtual(_run(house, scenario, requests, rate, gateways, errors_allowed, pools_kept))
    assert not house.problems, f"seed {seed}: {house.problems[:8]}"
    return house


def run_real(
    scenario: Scenario, runtime: Runtime, *, requests: int = 30, rate: float = 25.0, config: Config = CONFIG
) -> House:
    """The same in real time."""
    house = House(0, config, runtime=runtime)
    asyncio.run(_run(house, scenario, requests, rate, 1, errors_allowed=False, pools_kept=True))
    assert not house.problems, house.problems[:8]
    return house


async def _run(
    house: House, scenario: Scenario, requests: int, rate: float, gateways: int, errors_allowed: bool, pools_kept: bool
) -> None:
    await house.cluster.start()
    for number in range(1, gateways):
        await house.cluster.add_gateway(f"g{number + 1}")
    await asyncio.sleep(1.0)
    watching = [asyncio.ensure_future(house.watch_pools())] if pools_kept else []
    load: Coroutine[Any, Any, None] = house.load(requests, rate)
    await asyncio.gather(load, scenario(house))
    house.fault(None)
    await house.answered()
    for task in watching:
        task.cancel()
    settle_s = house.cluster.config.worker.resend_buffer_s + 2 * house.cluster.config.worker.lease_s
    await asyncio.sleep(settle_s)
    house.problems += [f"{a.gateway_id} request: {x}" for a in house.answers if (x := a.wrong(errors_allowed))]
    house.problems += house.left_over()
    await house.cluster.stop()


def on(*subjects: str, share: float, verdict: Any, rng: random.Random) -> Fault:
    """A fault that hits a share of the messages whose subject has one of these words."""

    def fault(subject: str, _: Message) -> Any:
        if any(word in subject for word in subjects) and rng.random() < share:
            return verdict() if callable(verdict) else verdict
        return None

    return fault
