"""A bare vLLM server of the tiny model on a CPU, to compare with: same settings as our engines', no KV store."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dopd.engine.vllm import environment
from dopd.runtime.lifeline import die_with
from dopd.supervisor.ports import this_or_free

START_S = 300.0  # on a quiet machine 30
STOP_S = 30.0


@contextmanager
def bare_vllm(model: Path, log: Path) -> Iterator[str]:
    """Yields its URL once it serves."""
    port = this_or_free("127.0.0.1", 0)
    env = dict(os.environ)
    environment.prepare(str(model), environ=env)
    # What `vllm serve` runs; that command itself wants the metadata of a package that is called vllm.
    words = [
        "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny-llama",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048",
        "--max-num-seqs", "16", "--max-num-batched-tokens", "512", "--block-size", "32",
        "--kv-cache-memory-bytes", str(64 << 20), "--enforce-eager",
    ]  # fmt: skip
    pid = os.getpid()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=out, stderr=subprocess.STDOUT, env=env,
            preexec_fn=lambda: die_with(pid),  # noqa: PLW1509 - takes no lock
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_S
    while not _serves(url):
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end_s, f"not up within {START_S} s: {log.read_text()[-2000:]}"
        time.sleep(0.5)


def _serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
