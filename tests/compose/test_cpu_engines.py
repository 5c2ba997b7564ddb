"""Real vLLM and LMCache in containers, without a GPU: every token is that of one engine alone on this machine.

The image takes minutes and gigabytes, so only on demand: `REAL_ENGINES=1 make test-compose`. `DOPD_TORCH_FROM` says
where pip finds torch's CPU build, if not in PyTorch's index.
"""

import asyncio
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dopd.engine.vllm.settings import VllmSettings
from dopd.engine.vllm.tiny_model import ensure_tiny_model
from tests.compose.docker import Docker
from tests.compose.stack import COMPOSE, Clients, Stack, clients_of
from tests.e2e.vllm.live_cluster import VOCABULARY, differences, running

BUILD_S, START_S = 2400.0, 600.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(BUILD_S + START_S),
    pytest.mark.skipif(not os.environ.get("REAL_ENGINES"), reason="REAL_ENGINES=1 builds and starts real engines"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm not installed; see `make setup`"),
]


@pytest.fixture(scope="module")
def real_stack(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One prefill and one decode worker on CPU engines."""
    stack = Stack(docker, tmp_path_factory.mktemp("real"), COMPOSE / "compose.cpu.yaml", project="dopd-test-cpu")
    try:
        stack.build_and_up(build_s=BUILD_S, up_s=START_S)
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail=40", "prefill-worker", "decode-worker", "lmcache"))
        stack.compose("down", "--volumes", "--timeout=20", "--remove-orphans")


async def test_real_engines_answer_change_roles_and_give_the_tokens_of_one_engine(
    real_stack: Stack, tmp_path: Path
) -> None:
    async with clients_of(real_stack) as clients:
        clients.model, clients.truth, clients.vocabulary = "tiny-llama", None, VOCABULARY
        await clients.until(lambda: len(clients.alive("prefill")) == len(clients.alive("decode")) == 1, 60.0)
        url = clients.gateways[0]
        began_s = clients.now()
        first = await clients.ask_http(64, 1, url=url)
        await first.done.wait()
        print(f"\nfirst token {clients.now() - began_s:.3f} s after `up --wait` returned")
        await ask_all(clients, url)
        # Both ways round, so that each engine has done either half.
        prefill, decode = clients.alive("prefill")[0], clients.alive("decode")[0]
        await clients.set_role(prefill, "mixed", "overlap")
        await clients.set_role(decode, "prefill", "overlap")
        await clients.set_role(prefill, "decode", "overlap")
        await ask_all(clients, url)
        assert clients.verdict() == [] and not clients.failures()
        assert clients.kv_misses() == 0
    async with running(VllmSettings(model=str(ensure_tiny_model(tmp_path / "tiny")))) as alone:
        assert await differences(clients.asked, alone) == []


async def ask_all(clients: Clients, url: str) -> None:
    """Prompts of a part of a chunk, of whole chunks and of many, over both APIs at once."""
    asked = []
    for isl in (20, 64, 333, 1500):
        asked += [await clients.ask_http(isl, 40, url=url), await clients.ask(isl, 40)]
    await asyncio.gather(*(one.done.wait() for one in asked))
