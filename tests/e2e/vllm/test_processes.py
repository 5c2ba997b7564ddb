"""What happens when a process of an engine dies: jobs end as failed, and nobody is left behind."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from dopd.engine.vllm.engine import VllmEngine
from dopd.engine.vllm.settings import VllmSettings
from dopd.engine.vllm.store import LmcacheStore, StoreSettings
from dopd.errors import EngineError
from dopd.runtime.clock import RealRuntime
from tests.engine_rig import Rig, job, prompt

# Engines start in 10 s on idle cores, in minutes beside other tests.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

ORPHANS = """
import asyncio, sys
from dopd.engine.vllm.engine import VllmEngine
from dopd.engine.vllm.settings import VllmSettings
from dopd.engine.vllm.store import LmcacheStore, StoreSettings
from dopd.runtime.clock import RealRuntime

async def main():
    store = LmcacheStore(StoreSettings(size_gb=0.1))
    engine = VllmEngine(VllmSettings(model=sys.argv[1]), RealRuntime())
    await asyncio.gather(store.start(), engine.start(lambda outputs: None))
    print(store.settings.shm_name, store.pid, *engine.child_pids, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def unlink_shared_memory(name: str) -> None:
    """What a killed store leaves: only the next store of the same name could know of it."""
    for segment in Path("/dev/shm").glob(f"*{name}"):
        segment.unlink()


async def gone(*pids: int) -> None:
    async with asyncio.timeout(5):
        while any(map(alive, pids)):  # noqa: ASYNC110  # other processes set no events
            await asyncio.sleep(0.05)


async def test_a_killed_engine_core_fails_its_jobs_and_an_engine_stops_without_leftovers(model: Path) -> None:
    rig = Rig(VllmEngine(VllmSettings(model=str(model)), RealRuntime()))
    await rig.engine.start(rig.on_output)
    [child] = rig.engine.child_pids  # type: ignore[attr-defined]
    running, queued = job(prompt(20), 1500), job(prompt(20), 5)
    rig.submit(running)
    await rig.started(running)
    rig.submit(queued)
    os.kill(child, signal.SIGKILL)
    for each in (running, queued):
        done = await rig.finished(each, timeout_s=10)
        assert (done.end, bool(done.error)) == ("failed", True)
    assert not rig.engine.load().alive
    late = job(prompt(20), 5)
    rig.submit(late)
    assert (await rig.finished(late)).end == "failed"
    for each in (running, queued, late):
        assert len([output for output in rig.outputs[each.job_id] if output.end]) == 1
    await rig.engine.stop()
    await rig.engine.stop()
    await gone(child)


async def test_a_frozen_engine_can_be_stopped_and_ends_its_jobs(model: Path) -> None:
    rig = Rig(VllmEngine(VllmSettings(model=str(model)), RealRuntime()))
    await rig.engine.start(rig.on_output)
    [child] = rig.engine.child_pids  # type: ignore[attr-defined]
    os.kill(child, signal.SIGSTOP)
    stuck = job(prompt(20), 5)
    rig.submit(stuck)
    async with asyncio.timeout(15):
        await rig.engine.stop()
    assert [output.end for output in rig.outputs[stuck.job_id]] == ["aborted"]
    await gone(child)


async def test_nobody_outlives_a_killed_front(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    front = await asyncio.create_subprocess_exec(
        sys.executable, script, str(model), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert front.stdout is not None
        line = (await asyncio.wait_for(front.stdout.readline(), timeout=90)).decode().split()
        pids = [int(word) for word in line[1:]]
        assert len(pids) == 2
        assert all(map(alive, pids))
    finally:
        front.kill()
        await front.wait()
    await gone(*pids)
    unlink_shared_memory(line[0])


async def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    engine = VllmEngine(VllmSettings(model=str(tmp_path / "no-such-model")), RealRuntime())
    with pytest.raises(EngineError):
        await engine.start(lambda outputs: None)
    await engine.stop()


async def test_a_store_that_cannot_start_says_so_and_leaves_nothing(store: LmcacheStore) -> None:
    other = LmcacheStore(StoreSettings(port=store.settings.port, size_gb=0.1, start_timeout_s=20))
    with pytest.raises(EngineError):
        await other.start()
    assert not other.segments
    assert not other.alive
