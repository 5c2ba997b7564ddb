"""All services in one process on the in-memory bus: what tests and virtual runs drive.

It wires the services' own code, nothing else: real or virtual is a matter of the runtime and the loop.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from dopd.bus.memory import MemoryBroker, MemoryBus
from dopd.config import ClusterConfig, Config
from dopd.engine.contract import Engine
from dopd.engine.sim.engine import SimEngine
from dopd.engine.sim.kvstore import LocalStore
from dopd.engine.sim.pair import check_pair, pair
from dopd.ledger.memory import MemoryStore
from dopd.obs.telemetry import Tracing
from dopd.perf.profile import Profile
from dopd.policy import forecaster_of, planner_of, policy_of, sizes
from dopd.policy.base import Policy
from dopd.runtime.clock import Runtime
from dopd.slo import Slo
from dopd.worker.host import Worker
from dopd_forecaster.service import Forecaster
from dopd_gateway.service import Gateway
from dopd_planner.service import RatioPlanner
from dopd_proto.base import Role


@dataclass
class LocalCluster:
    """One gateway, a planner, a forecaster and workers `w1`…`wn`; more with `add_gateway` and `add_planner`.

    `together` advances emulated steps in one go (virtual time only). `profile` and `decode_profile` go before the
    config's: the engines of workers that start as prefill and as decode, alike when only the first is given. `tracing`
    makes that of a service and its instance. Workers start `spread_s` apart.
    """

    runtime: Runtime
    config: Config = field(default_factory=Config)
    policy: Policy | None = None
    profile: Profile | None = None
    decode_profile: Profile | None = None
    together: bool = False
    latency_s: float = 0.0
    spread_s: float = 0.0
    tracing: Callable[[str, str], Tracing | None] = lambda service, instance: None
    workers: dict[str, Worker] = field(default_factory=dict)
    engines: dict[str, SimEngine] = field(default_factory=dict)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    planners: dict[str, RatioPlanner] = field(default_factory=dict)
    buses: dict[str, MemoryBus] = field(default_factory=dict)

    async def start(self) -> None:
        """Start everything and wait until the first gateway knows every worker."""
        config = self.config
        self.policy = self.policy or policy_of(config)
        if self.profile is None:
            self.profile, decode_profile = pair(config.engine, self.policy)
            self.decode_profile = self.decode_profile or decode_profile
        self.decode_profile = self.decode_profile or self.profile
        check_pair(self.policy, self.profile, self.decode_profile)
        self.broker = MemoryBroker(latency_s=self.latency_s, check_payload=not self.together)
        self.store = LocalStore(config.engine.sim_store_tokens, self.profile.chunk_tokens)
        self.ledger = MemoryStore(now=self.runtime.now)
        self.gateway = await self.add_gateway("g1")
        bus, profiles = self.broker.connect("forecaster"), (self.profile, self.decode_profile)
        self.forecaster = Forecaster(
            bus, self.runtime, forecaster_of(self.policy, config), *profiles, self.tracing("forecaster", "forecaster")
        )
        await self.forecaster.start()
        self.planner = await self.add_planner("planner")
        prefill, decode = sizes(self.policy, config.cluster.sizes, ClusterConfig().sizes)
        for number in range(prefill + decode):
            await self.add_worker(f"w{number + 1}", "prefill" if number < prefill else "decode")
            if self.spread_s:  # else not even a turn of the loop: it would change the order of events
                await asyncio.sleep(self.spread_s)

    async def add_gateway(self, gateway_id: str) -> Gateway:
        """Start one more gateway."""
        assert self.policy is not None
        bus = self.buses[gateway_id] = self.broker.connect(gateway_id)
        tracing = self.tracing("gateway", gateway_id)
        gateway = Gateway(gateway_id, self.policy, bus, self.runtime, self.config.gateway, "sim", tracing=tracing)
        await gateway.start()
        self.gateways[gateway_id] = gateway
        return gateway

    async def add_planner(self, name: str) -> RatioPlanner:
        """Start one more planner, or start it anew under its old name."""
        assert self.policy is not None
        slo = Slo(self.config.slo.ttft_s, self.config.slo.tpot_s)
        make = self.policy.planner
        bus = self.buses[name] = self.broker.connect(name)
        planner = self.planners[name] = RatioPlanner(
            name,
            bus,
            self.ledger.open(),
            self.runtime,
            planner_of(self.policy, self.config),
            slo,
            make and make(),
            tracing=self.tracing("ratio-planner", name),
        )
        await planner.start()
        return planner

    @property
    def profiles(self) -> tuple[Profile, Profile]:
        """Of workers that start as prefill and as decode, once started."""
        assert self.profile is not None and self.decode_profile is not None
        return self.profile, self.decode_profile

    @property
    def gpus(self) -> int:
        """GPUs of all workers."""
        return sum(self.engines[worker_id].gpus for worker_id in self.workers)

    async def add_worker(self, worker_id: str, role: Role, engine: Engine | None = None, cold: bool = False) -> Worker:
        """Start a worker, or start it anew under its old id. A `cold` one first loads for its profile's `start_s`."""
        assert self.policy is not None
        profile = self.profiles[role == "decode"]
        if cold:
            await asyncio.sleep(profile.start_s)
        if engine is None:
            engine = self.engines[worker_id] = SimEngine(
                profile, self.store, self.runtime, self.config.engine.save_decode_cache, self.together
            )
        first: Role = "mixed" if self.policy.first_roles == "mixed" else role
        bus = self.buses[worker_id] = self.broker.connect(worker_id)
        starts = self.policy.starts and self.policy.starts()
        worker = Worker(
            worker_id,
            first,
            engine,
            bus,
            self.runtime,
            self.config.worker,
            "sim",
            starts=starts,
            tracing=self.tracing("worker", worker_id),
        )
        await worker.start()
        await engine.set_budget(self.policy.budget)
        self.workers[worker_id] = worker
        return worker

    def kill_worker(self, worker_id: str) -> None:
        """As SIGKILL would: nothing is said and nothing goes out any more."""
        self.engines[worker_id].kill()
        worker = self.workers.pop(worker_id)
        worker.crash()
        self.buses.pop(worker_id).kill()

    def kill_gateway(self, gateway_id: str) -> None:
        """As SIGKILL would."""
        self.gateways.pop(gateway_id).crash()
        self.buses.pop(gateway_id).kill()

    def kill_planner(self, name: str) -> None:
        """As SIGKILL would: its lease runs on."""
        self.planners.pop(name).crash()
        self.buses.pop(name).kill()

    async def stop(self) -> None:
        """Stop everything in order."""
        for gateway in self.gateways.values():
            await gateway.stop()
        for planner in self.planners.values():
            await planner.stop()
        await self.forecaster.stop()
        for worker in self.workers.values():
            await worker.stop()
