"""A live cluster of real engines for tests, each worker a process, and the truth about its greedy output.

Consumes the tiny model; produces connected `Live` clients, engines of this process, and what one that works alone says
to the clients' prompts.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dopd.engine.vllm.engine import VllmEngine
from dopd.engine.vllm.settings import VllmSettings
from dopd.runtime.clock import RealRuntime
from tests.e2e.live import Asked, Live, live
from tests.e2e.running import Running
from tests.engine_rig import Rig, job
from tests.nats_server import server_binary

START_S = 500.0  # seconds on a quiet machine: 40
VOCABULARY = 1024


@asynccontextmanager
async def real_cluster(model: Path, folder: Path, **more: object) -> AsyncIterator[Live]:
    """One prefill and two decode workers: the least with which a role can change in either direction. `more` are other
    settings, as `SECTION__KEY`. Roles change only when they are told to, unless a policy is named."""
    server_binary()
    settings = {
        "DOPD__CLUSTER__STATE_DIR": str(folder),
        "DOPD__CLUSTER__PREFILL": "1",
        "DOPD__CLUSTER__DECODE": "2",
        "DOPD__GATEWAY__PORT": "0",
        "DOPD__ENGINE__KIND": "vllm",
        "DOPD__POLICY__NAME": "simple",
        "DOPD__ENGINE__LMCACHE_GB": "0.5",
        # So that one decode worker can take what two had in hand, and prefills still find a place.
        "DOPD__ENGINE__MAX_RUNNING": "64",
        "DOPD__ENGINE__KV_CACHE_MB": "512",
        "MODEL": str(model),
        **{f"DOPD__{key.upper()}": str(value) for key, value in more.items()},
    }
    with Running(["dopd.cli", "up"], folder, settings) as up:
        await asyncio.to_thread(up.wait_for, "Ctrl-C stops everything", START_S)
        async with live(up) as clients:
            clients.truth, clients.vocabulary = None, VOCABULARY
            yield clients
        up.note()
        up.interrupt()
        assert await asyncio.to_thread(up.code, 60.0) in (0, 130)
        assert up.left() == []


@asynccontextmanager
async def running(settings: VllmSettings) -> AsyncIterator[Rig]:
    """One engine of this process."""
    rig = Rig(VllmEngine(settings, RealRuntime()))
    await rig.engine.start(rig.on_output)
    try:
        yield rig
    finally:
        await rig.engine.stop()


async def differences(asked: list[Asked], alone: Rig) -> list[str]:
    """Requests whose tokens are not those of one engine alone."""
    jobs = [job(each.prompt, each.max_tokens) for each in asked]
    wrong = []
    for each, done in zip(asked, await alone.run(*jobs), strict=True):
        if each.tokens != done.tokens:
            at = next((i for i, (a, b) in enumerate(zip(each.tokens, done.tokens, strict=False)) if a != b), None)
            wrong.append(f"{len(each.tokens)} of {len(done.tokens)} tokens, first other one at {at}")
    return wrong
