"""Real engines for the tests of this folder, started once per test run: two on one KV store, and one that works alone.

The lone engine is the reference. It uses the same store program, but under another model name, so that it shares no KV.
"""

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from dopd.engine.vllm.settings import VllmSettings
from dopd.engine.vllm.store import LmcacheStore, StoreSettings
from dopd.engine.vllm.tiny_model import ensure_tiny_model
from tests.e2e.live import Live
from tests.e2e.vllm.live_cluster import real_cluster, running
from tests.engine_rig import Rig

session = pytest_asyncio.fixture(scope="session", loop_scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("vllm", "lmcache") if importlib.util.find_spec(name) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.slow)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"{' and '.join(missing)} not installed; see `make setup`"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@session
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LmcacheStore]:
    log_file = str(tmp_path_factory.mktemp("store") / "lmcache.log")
    async with LmcacheStore(StoreSettings(size_gb=0.25, log_file=log_file)) as running:
        yield running


@pytest.fixture(scope="session")
def settings(model: Path, store: LmcacheStore) -> Iterator[VllmSettings]:
    # Short time-outs: the tests with a dead store wait for them.
    yield VllmSettings(
        model=str(model), lmcache_port=store.settings.port, lmcache_gb=0.25, mq_timeout_s=1.0, heartbeat_s=1.0
    )


@session
async def a(settings: VllmSettings) -> AsyncIterator[Rig]:
    async with running(settings) as rig:
        yield rig


@session
async def b(settings: VllmSettings) -> AsyncIterator[Rig]:
    async with running(settings) as rig:
        yield rig


@session
async def alone(settings: VllmSettings, model: Path) -> AsyncIterator[Rig]:
    from msgspec.structs import replace

    other_name = model.with_name("tiny-alone")
    other_name.symlink_to(model)
    async with running(replace(settings, model=str(other_name), save_decode_cache=False)) as rig:
        yield rig


@session
async def clients(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with real_cluster(model, tmp_path_factory.mktemp("live")) as connected:
        yield connected
