"""One emulated cluster for all tests of clients, as `dopd up --demo` starts it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from dopd.config import load, served_name
from dopd.supervisor.stack import gateway_url
from tests.e2e.live import demo
from tests.e2e.running import ROOT

BURST = 100
"""Requests that one API key may send at once: above what any test sends with one key, but for the one that means to."""
NODE = 20
UNREACHABLE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cluster:
    """Where it is. `v1` is what clients call base URL."""

    url: str
    nats_url: str
    model: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("clients")
    limits = {"gateway__requests_per_s_per_key": 1.0, "gateway__burst_per_key": BURST}
    with demo(folder, cluster__prefill=1, cluster__decode=1, **limits) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        up.note()
        config = load(folder / "run/config.json")
        yield Cluster(gateway_url(config), config.cluster.broker_url, served_name(config.engine))
        up.interrupt()
        assert up.code(60.0) == 0


@pytest.fixture(scope="session")
def node() -> tuple[str, Path]:
    """The `node` program, and a folder where the JavaScript client is installed with the pinned version."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("node and npm are not on PATH, so the JavaScript client is not tested (Debian: apt install npm)")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    if int(said.lstrip("v").partition(".")[0]) < NODE:
        pytest.skip(f"node is {said.strip()}, but the JavaScript client needs {NODE} or newer")
    folder = ROOT / ".tools/clients"
    pinned = [HERE / "package.json", HERE / "package-lock.json"]
    stamp, mark = folder / ".stamp", str([crc32(file.read_bytes()) for file in pinned])
    folder.mkdir(parents=True, exist_ok=True)
    if not stamp.exists() or stamp.read_text() != mark:
        for file in pinned:
            shutil.copy(file, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        if UNREACHABLE.search(done.stderr):
            pytest.skip(f"npm cannot reach its registry, so the JavaScript client is not tested: {done.stderr[:200]}")
        assert done.returncode == 0, f"npm could not install the pinned client: {done.stderr}"
        stamp.write_text(mark)
    return program, folder


def decoded(text: str) -> Any:
    """JSON, with the text in the message where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        pytest.fail(f"no JSON: {text!r}")
