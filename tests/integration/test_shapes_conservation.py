"""Nothing comes of nothing and nothing stays: tokens, computed and cached input, KV blocks, credit, unfetched KV.

`House` already compares every token with the emulated draw and looks for what is left; here each engine's account is
kept from outside: what was submitted, what came out, and what its steps say they computed.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from dopd.engine.contract import Cached, Job, JobOutput
from dopd.engine.sim.blocks import BlockPool
from dopd.engine.sim.engine import SimEngine
from dopd_proto.base import DrainMode
from tests.house import CONFIG, Answer, House, run_house

SEEDS = range(3)
DRAINS: tuple[DrainMode, ...] = ("overlap", "migrate", "wait")
SHARED = [random.Random("shared").randrange(3, 32_000) for _ in range(1200)]


@dataclass
class Account:
    """One engine, seen from outside."""

    jobs: dict[str, Job] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    ends: dict[str, str] = field(default_factory=dict)
    cached: dict[str, Cached] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)

    def watch(self, engine: SimEngine) -> None:
        submit, on_output = engine.submit, engine._on_output
        assert on_output is not None

        def submitted(job: Job) -> None:
            submit(job)
            self.jobs[job.job_id] = job

        def came(outputs: Sequence[JobOutput]) -> None:
            for output in outputs:
                self.made[output.job_id] += len(output.tokens)
                if output.cached is not None:
                    self.cached[output.job_id] = output.cached
                if output.end is not None:
                    assert output.job_id not in self.ends, "a job ends once"
                    self.ends[output.job_id] = output.end
            on_output(outputs)

        engine.submit, engine._on_output = submitted, came  # type: ignore[method-assign]

    async def read(self, engine: SimEngine) -> None:
        """The records are bounded, so they are read as they come."""
        for record in await engine.take_records():
            self.computed.update(record.tokens)

    def surplus(self, job_id: str) -> int:
        """Tokens computed beyond input and output (its last token is not computed) less what the caches had."""
        job, cached = self.jobs[job_id], self.cached[job_id]
        kept = cached.local_tokens + cached.store_tokens
        return self.computed[job_id] - (len(job.tokens) - kept + self.made[job_id] - 1)


@dataclass
class Books:
    """The accounts of all engines of a house."""

    house: House
    accounts: dict[str, Account] = field(default_factory=dict)

    async def keep(self) -> None:
        """From now on until no client waits. Starts before the first request does."""
        engines = self.house.cluster.engines
        for worker_id, engine in engines.items():
            self.accounts[worker_id] = Account()
            self.accounts[worker_id].watch(engine)
        while not self.house.tasks or any(not task.done() for task in self.house.tasks):
            await asyncio.sleep(0.2)
            for worker_id, engine in engines.items():
                await self.accounts[worker_id].read(engine)

    def surpluses(self) -> dict[str, int]:
        """Of the jobs that ran to their end."""
        return {
            job_id: account.surplus(job_id)
            for account in self.accounts.values()
            for job_id, end in account.ends.items()
            if end == "length"
        }


def ask(house: House, prompt: list[int], osl: int) -> None:
    """A client with a prompt of its own, beside those of the house's load."""
    gateway, now_s = house.cluster.gateway, house.runtime.now()
    answer = Answer(prompt, osl, gateway.gateway_id, now_s, now_s + 60.0)
    house.answers.append(answer)
    house.tasks[asyncio.get_running_loop().create_task(house._read(gateway, answer))] = answer


async def ask_alike(house: House, count: int = 20) -> None:
    """Prompts with beginnings in common, some of them asked twice."""
    for _ in range(count):
        await asyncio.sleep(house.rng.expovariate(20.0))
        own = [house.rng.randrange(3, 32_000) for _ in range(house.rng.randrange(1, 400))]
        prompt = SHARED[: house.rng.randrange(len(SHARED))] + own
        for _ in range(house.rng.choice((1, 1, 2))):
            ask(house, prompt, house.rng.randint(1, 60))


def settled(house: House) -> None:
    """What the house does not look at: every block is free, all credit is back, no KV counts as not fetched."""
    for engine in house.cluster.engines.values():
        pool = engine._core.pool
        assert pool.available == pool.total
    for gateway in house.cluster.gateways.values():
        for known in gateway.fleet.workers.values():
            grant = gateway.fleet._grant(known.state)
            assert known.sent == grant.received, known.state.worker_id
            assert (known.open, known.open_prefill_tokens, known.new_prefill_tokens) == (0, 0, 0)
        share = house.cluster.config.gateway.kv_budget_share / len(house.cluster.gateways)
        room = int(house.cluster.config.engine.sim_store_tokens * share)
        assert gateway.cluster().kv_room_tokens == {"local": room}


def test_what_is_computed_and_cached_and_fetched_adds_up_to_the_input_of_every_job() -> None:
    books: list[Books] = []

    async def alike(house: House) -> None:
        books.append(Books(house))
        await asyncio.gather(books[0].keep(), ask_alike(house, 40))

    house = run_house(alike, 0, requests=40)
    surpluses = books[0].surpluses()
    assert len(surpluses) > 80
    assert set(surpluses.values()) == {0}
    cached = [one for account in books[0].accounts.values() for one in account.cached.values()]
    assert sum(one.local_tokens for one in cached) > 1000
    assert sum(one.store_tokens for one in cached) > 1000
    assert house.kv_misses() == 0
    settled(house)


@pytest.mark.parametrize("drain", DRAINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_adds_up_with_clients_that_leave_and_workers_that_change_their_role(seed: int, drain: DrainMode) -> None:
    books: list[Books] = []

    async def leave(house: House) -> None:
        for _ in range(10):
            await asyncio.sleep(house.rng.uniform(0.02, 0.2))
            waiting = [task for task in house.tasks if not task.done()]
            if waiting:
                house.rng.choice(waiting).cancel()

    async def disturbed(house: House) -> None:
        books.append(Books(house))
        await asyncio.gather(books[0].keep(), ask_alike(house), leave(house), house.flips(8, (drain,)))

    house = run_house(disturbed, seed, requests=30)
    assert any(answer.left for answer in house.answers)
    surpluses = books[0].surpluses()
    assert surpluses and set(surpluses.values()) == {0}
    settled(house)


@pytest.mark.parametrize("seed", SEEDS)
def test_out_of_memory_a_request_is_computed_again_and_delivered_once(seed: int) -> None:
    """Each worker has blocks for a few requests, and an idle one grants credit for more than it has memory for."""
    books: list[Books] = []

    async def tight(house: House) -> None:
        for engine in house.cluster.engines.values():
            core = engine._core
            core.pool = BlockPool(2048 // core.profile.block_tokens, core.pool.chunk_blocks)
        books.append(Books(house))
        await asyncio.gather(books[0].keep(), ask_alike(house))

    house = run_house(tight, seed, requests=30, config=CONFIG)
    surpluses = books[0].surpluses().values()
    assert min(surpluses) == 0
    assert max(surpluses) > 0, "somebody has started over"
    settled(house)
