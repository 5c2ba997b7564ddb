"""The model that is served: the one that was asked for, or a tiny random one made here once.

Consumes a resolved config; produces it with `engine.model` filled in, and says which model it is, and with which
profile the policy counts.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, STDOUT

from msgspec.structs import replace

from dopd.config import Config, EngineConfig
from dopd.errors import EngineError
from dopd.supervisor.console import Console
from dopd.supervisor.state import StateDir

TINY, TINY_PROFILE = "tiny-llama", "cpu-tiny-llama"


async def ensure_model(config: Config, state: StateDir, console: Console) -> Config:
    """Make the tiny model where none is named. The emulated engine needs no model."""
    engine = config.engine
    if engine.kind == "sim":
        console.line(f"emulated engine, profile {engine.profile}: real scheduling and times, tokens without meaning")
        return config
    if engine.model:
        console.line(f"vLLM, model {engine.model}")
        if engine.profile == EngineConfig().profile:
            console.line(
                f"policy {config.policy.name} counts with profile {engine.profile}; if this engine is unlike it, "
                "measure it: dopd profile -o mine.csv, then DOPD__ENGINE__PROFILE=mine.csv"
            )
        return config
    console.line("vLLM, no MODEL given: serving a tiny random model, its text has no meaning (MODEL=hub-id-or-folder)")
    folder = state.root / "models" / TINY
    if not (folder / "config.json").exists():
        await _make(str(folder), state)
        console.event("model", "tiny random model made")
    profile = TINY_PROFILE if engine.profile == EngineConfig().profile else engine.profile
    return replace(config, engine=replace(engine, model=str(folder), profile=profile))


async def _make(folder: str, state: StateDir) -> None:
    """In a process of its own: this one stays free of torch."""
    with state.log_file("model").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dopd.engine.vllm.tiny_model", folder), stdin=DEVNULL, stdout=log, stderr=STDOUT
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
    if code != 0:
        raise EngineError(f"the tiny model could not be made (exit code {code}); see {state.logs}/model.log")
