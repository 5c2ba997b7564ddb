"""One run of a cluster in virtual time with aborts, role changes and crashes, as a log and the log's hash.

`python -m tests.integration.replay SEED...` prints the hash of each; a run must not depend on the interpreter's own.
"""

import asyncio
import hashlib
import logging
import sys
from typing import Any

import structlog
from msgspec import structs

from dopd.bus import Delivery
from dopd.config import PolicyConfig
from dopd.policy import policy_named
from dopd_gateway.service import Gateway
from dopd_proto.subjects import WORKER_STATE
from dopd_proto.telemetry import WorkerState
from tests.house import CONFIG, House, run_house

Log = list[tuple[Any, ...]]


POLICIES = (
    "simple", "aggregated", "simple", "tests.policies.dyna:DYNA", "distserve", "tests.policies.bucket:BUCKET",
    "simple", "tests.policies.uellm:UELLM",
)  # fmt: skip
"""Budgets and gates of every kind: asked for each step or for those with prompts only, batches, exclusive prefills."""


def replay(seed: int, together: bool, policy: str = "simple") -> Log:
    """Dispatches, role changes, outputs and times of one run, in this order."""
    log: Log = []
    config = structs.replace(CONFIG, policy=PolicyConfig(name=policy))
    flips = 0 if policy_named(policy).first_roles == "mixed" else 5

    async def scenario(house: House) -> None:
        await _listen(house, log)
        for gateway in house.cluster.gateways.values():
            _note_dispatches(gateway, log)
        await asyncio.gather(house.flips(flips), _leave(house), _crash(house), _stall(house))

    house = run_house(scenario, seed, requests=24, config=config, together=together, pools_kept=False, gateways=2)
    for answer in house.answers:
        # When a client leaves, what it has seen depends on how often tokens are reported; all else does not.
        seen = () if answer.left else (answer.tokens, answer.times_s, answer.ended_s)
        log.append(("answer", answer.asked_s, answer.ends, answer.left, *seen))
    return log


async def _leave(house: House) -> None:
    for _ in range(4):
        await asyncio.sleep(house.rng.uniform(0.05, 0.4))
        waiting = [task for task in house.tasks if not task.done()]
        if waiting:
            house.rng.choice(waiting).cancel()


async def _crash(house: House) -> None:
    await asyncio.sleep(house.rng.uniform(0.2, 1.2))
    victim = house.rng.choice(sorted(house.cluster.workers))
    role = house.cluster.workers[victim].role.role
    house.cluster.kill_worker(victim)
    await house.restart(victim, role, house.rng.uniform(0.1, 5.0))


async def _stall(house: House) -> None:
    await asyncio.sleep(house.rng.uniform(0.2, 1.2))
    house.cluster.engines[house.rng.choice(sorted(house.cluster.workers))].stall(0.7)


async def _listen(house: House, log: Log) -> None:
    last: dict[str, tuple[Any, ...]] = {}

    def take(delivery: Delivery[WorkerState]) -> None:
        s = delivery.message
        role = (s.incarnation, s.role, s.epoch, s.accepting_at_s, s.drained_at_s)
        if last.get(s.worker_id) != role:
            last[s.worker_id] = role
            log.append(("role", s.sent_s, s.worker_id, *role))

    await house.cluster.broker.connect("listener").subscribe(WORKER_STATE.at(), take)


def _note_dispatches(gateway: Gateway, log: Log) -> None:
    place = gateway._place

    def noted(request: Any, *more: Any) -> None:
        place(request, *more)
        slip = [(s.worker_id, s.incarnation, s.epoch, s.stop) for s in request.slip]
        log.append(("dispatch", gateway._runtime.now(), request.request_id, request.attempt, slip))

    gateway._place = noted  # type: ignore[method-assign]


def digest(log: Log) -> str:
    return hashlib.blake2b(repr(log).encode(), digest_size=16).hexdigest()


def be_quiet() -> None:
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    be_quiet()
    for argument in sys.argv[1:]:
        print(argument, digest(replay(int(argument), together=False)), digest(replay(int(argument), together=True)))
