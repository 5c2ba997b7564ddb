"""`dopd up` with real engines: vLLM and LMCache on this machine, the tiny model."""

import json
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dopd.supervisor import http
from tests.e2e.running import Running, wait_until
from tests.nats_server import server_binary

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
START_S = 400.0  # seconds on a quiet machine: 35


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server_binary()
    folder = tmp_path_factory.mktemp("real")
    env = {
        "DOPD__CLUSTER__STATE_DIR": str(folder),
        "DOPD__CLUSTER__PREFILL": "1",
        "DOPD__CLUSTER__DECODE": "1",
        "DOPD__GATEWAY__PORT": "0",
        "DOPD__ENGINE__KIND": "vllm",
        "MODEL": "",
    }
    with Running(["dopd.cli", "up"], folder, env) as up:
        up.wait_for("Ctrl-C stops everything", START_S)
        yield up


def test_without_a_model_the_tiny_one_is_made_and_said_to_be_so(cluster: Running) -> None:
    assert "no MODEL given: serving a tiny random model" in cluster.output
    assert (cluster.state.root / "models/tiny-llama/config.json").exists()


async def test_the_printed_curl_line_gets_an_answer_of_the_tiny_model(cluster: Running) -> None:
    line = next(line for line in cluster.output.splitlines() if line.strip().startswith("curl "))
    _, url, _, _, _, body = shlex.split(line)
    async with http.request(url, body.encode()) as response:
        answer = json.loads(await response.body())
    assert (response.status, answer["model"]) == (200, "tiny-llama")
    assert 1 <= answer["usage"]["completion_tokens"] <= 16


def test_sigkill_of_the_supervisor_leaves_no_engine(cluster: Running) -> None:
    """The last one that uses the cluster."""
    cluster.note()
    assert len(cluster.left()) >= 9  # each worker has an engine process
    cluster.process.kill()
    cluster.code()
    assert wait_until(lambda: cluster.left() == [], 5.0), cluster.left()
    cluster.state.free_shared_memory()
    assert not list(Path("/dev/shm").glob(f"*{cluster.state.shared_memory_name}*"))
