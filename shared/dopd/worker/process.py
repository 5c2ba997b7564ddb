"""A worker as a process: builds the engine that the config names, and runs the one core.

`python -m dopd_prefill` and `python -m dopd_decode` differ in their first role alone.
"""

import argparse
import asyncio
from functools import partial
from typing import NoReturn

from dopd.config import EngineConfig, real_engine, served_name
from dopd.engine.contract import Engine
from dopd.engine.shared_kv import SharedKv
from dopd.engine.sim.engine import SimEngine
from dopd.engine.sim.pair import pair
from dopd.engine.sim.store import BusStore
from dopd.errors import EngineError
from dopd.policy import policy_of
from dopd.policy.base import Policy
from dopd.runtime.main import ServiceContext, host_name, run_service
from dopd.worker import metrics
from dopd.worker.host import Worker
from dopd_proto.base import Role


def run_worker(name: str, first_role: Role) -> NoReturn:
    """The process entry of both services."""
    run_service(name, partial(_serve, first_role), _arguments)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--worker-id",
        default=host_name(),
        help="unique in the cluster, for example w1; neutral, as the role may change (default: this host's name)",
    )


async def _serve(first_role: Role, ctx: ServiceContext) -> None:
    config = ctx.config
    policy = policy_of(config)
    engine, shared = make_engine(config.engine, policy, first_role, ctx)
    role: Role = "mixed" if policy.first_roles == "mixed" else first_role
    worker = Worker(
        ctx.args.worker_id, role, engine, ctx.bus, ctx.runtime, config.worker,
        served_name(config.engine), config.engine.kv_domain, shared, policy.starts and policy.starts(), ctx.tracing,
    )  # fmt: skip
    ctx.metrics.add(lambda: metrics.samples(worker, ctx.runtime.now()))
    ctx.readiness.when(partial(_lacks, worker))
    await worker.start()
    await engine.set_budget(policy.budget)
    await _first(ctx.stop, worker.failed)
    await worker.stop()
    if worker.failed.is_set():
        raise EngineError("the engine died")


def _lacks(worker: Worker) -> str:
    """Why it takes no work; empty when it does."""
    phase = worker.said.phase if worker.said is not None else "starting"
    return "" if phase in ("serving", "draining") else f"the worker is {phase}"


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def make_engine(
    config: EngineConfig, policy: Policy, first_role: Role, ctx: ServiceContext
) -> tuple[Engine, SharedKv | None]:
    """The engine that the config names for this role, not started yet, and the store that its domain shares."""
    name, token_s = config.kv_shared, config.kv_shared_token_s
    if real_engine(config):
        # heavy: imported only where it is used
        from dopd.engine.vllm import environment, resp
        from dopd.engine.vllm.engine import VllmEngine
        from dopd.engine.vllm.settings import settings_from

        shared = SharedKv(name, token_s, partial(resp.answers, *resp.place(name))) if name else None
        return VllmEngine(settings_from(config, config.model, cpu=environment.on_cpu()), ctx.runtime), shared
    prefill, decode = pair(config, policy)
    profile = decode if first_role == "decode" else prefill
    store = BusStore(ctx.bus, config.kv_domain, config.sim_store_tokens, name, token_s * profile.chunk_tokens)
    shared = SharedKv(name, token_s, store.reaches_shared) if name else None
    return SimEngine(profile, store, ctx.runtime, config.save_decode_cache), shared
