"""Other projects' proxies, as PyPI has them, each in a virtual environment of its own under .tools/peers.

Consumes the URL of an OpenAI-compatible server and a list of names; produces running proxies. What is not installed is
installed on demand (`install`), in the pinned version.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dopd.runtime.lifeline import PARENT_VARIABLE, die_with
from dopd.supervisor.ports import this_or_free
from tests.bench.bare_engine import MODEL

ROOT = Path(__file__).parents[2] / ".tools" / "peers"
INSTALL_S = 900.0

Command = Callable[[Path, str, int, Path], list[str]]


@dataclass(frozen=True)
class Peer:
    """One proxy. `command` gets its environment's bin folder, the server's URL, a port and a folder to write to."""

    name: str
    requirement: str
    language: str
    command: Command
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        return ROOT / self.name / "bin"

    def installed(self) -> bool:
        """Whether this very version is there."""
        return (ROOT / self.name / f"{self.requirement}.done").exists()


def _router(start: list[str]) -> Command:
    def command(bin_: Path, url: str, port: int, folder: Path) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", url, "--policy", "round_robin"]
        metrics = ["--prometheus-port", str(this_or_free("127.0.0.1", 0)), "--prometheus-host", "127.0.0.1"]
        return [str(bin_ / start[0]), *start[1:], *options, *metrics]

    return command


def _litellm(bin_: Path, url: str, port: int, folder: Path) -> list[str]:
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: text-completion-openai/{MODEL}\n"
        f"      api_base: {url}/v1\n      api_key: none\nlitellm_settings:\n  telemetry: false\n"
    )
    return [str(bin_ / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]


_LITELLM_ENV = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it fetches a price list when it starts
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
PEERS = (
    Peer("litellm", "litellm[proxy]==1.106.2", "Python", _litellm, _LITELLM_ENV),
    Peer("vllm-router", "vllm-router==0.1.17", "Rust", _router(["vllm-router"])),
    Peer("sglang-router", "sglang-router==0.3.2", "Rust", _router(["python", "-m", "sglang_router.launch_router"])),
)
ABSENT = {"production-stack's router": "PyPI does not have it: `vllm-router` there is another project, in Rust"}


def install(peer: Peer) -> str:
    """Into an environment of its own; "" or why not."""
    if peer.installed():
        return ""
    home = ROOT / peer.name
    for command in ([sys.executable, "-m", "venv", str(home)], [str(peer.bin / "pip"), "install", peer.requirement]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        except subprocess.TimeoutExpired:
            return f"the installation took more than {INSTALL_S:.0f} s"
        if done.returncode:
            return (done.stderr.strip() or done.stdout.strip())[-300:]
    (home / f"{peer.requirement}.done").touch()
    return ""


@contextmanager
def running(peer: Peer, url: str, folder: Path) -> Iterator[tuple[str, int]]:
    """The proxy's URL and pid. It may not serve yet; what it says is in `folder`."""
    port, me = this_or_free("127.0.0.1", 0), os.getpid()
    env = {**os.environ, PARENT_VARIABLE: str(me), "NO_PROXY": "*", **peer.env}
    with (folder / f"{peer.name}.log").open("wb") as log:
        process = subprocess.Popen(
            peer.command(peer.bin, url, port, folder), stdout=log, stderr=log, env=env, cwd=folder,
            preexec_fn=lambda: die_with(me),  # noqa: PLW1509 - one prctl call, no locks
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
