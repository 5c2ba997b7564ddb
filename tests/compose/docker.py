"""A Docker engine with compose v2: the one that answers, else a private daemon of this process where it may start one.

Consumes the machine; produces `Docker`, which runs the client. What cannot be had is a skip that says how to get it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.compose import stand_ins

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / ".tools/docker"
START_S = 30.0
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGE = Path("/sys/class/net/docker0")
IMPORTED = {
    "python:3.11-slim-bookworm": (
        stand_ins.python_image,
        ['CMD ["python3"]', "ENV PATH=/usr/local/bin:/bin LD_LIBRARY_PATH=/usr/local/lib LANG=C.UTF-8"],
    ),
    "nats:2.10-alpine": (stand_ins.broker_image, ['ENTRYPOINT ["nats-server"]']),
}


class Docker:
    """The client, told where the daemon and its plugins are."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = {**os.environ, **env}

    def run(self, *words: object, timeout_s: float = 120.0, env: dict[str, str] | None = None) -> str:
        """Its standard output. Fails the test with what it wrote when it does not end well in time."""
        command = ["docker", *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env={**self._env, **(env or {})}, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def works(self, *words: object) -> bool:
        """Whether the command ends well, within 60 s."""
        try:
            subprocess.run(
                ["docker", *map(str, words)], capture_output=True, timeout=60.0, env=self._env, check=True
            )  # fmt: skip
        except (subprocess.SubprocessError, OSError):
            return False
        return True


def plugins() -> dict[str, str]:
    """Settings with which the client finds compose v2 and buildx; unpacked from Debian's packages where it has none."""
    if shutil.which("docker") is None:
        pytest.skip("no docker client: apt-get install docker.io")
    if Docker({}).works("compose", "version") and Docker({}).works("buildx", "version"):
        return {}
    for name in ("docker-compose", "docker-buildx"):
        _unpacked(name)
    return {"DOCKER_CONFIG": str(PLUGINS)}


def compose_program() -> list[str]:
    """A compose v2, which needs no daemon to check files. Skips where none is and none can be had."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            done = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, timeout=20, check=False
            )
            if done.returncode == 0 and int(done.stdout.strip().lstrip("v").partition(".")[0]) >= 2:
                return command
    return [str(_unpacked("docker-compose"))]


def _unpacked(name: str) -> Path:
    """The plugin in .tools, from Debian's package of that name. Skips where that cannot be had."""
    program = PLUGINS / "cli-plugins" / name
    if not program.exists():
        try:
            command = [ROOT / "deploy/setup/debian.sh", "trixie", PLUGINS / name, name]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError):
            pytest.skip(f"no {name} here, and Debian's cannot be fetched: install Docker's package {name}-plugin")
        program.parent.mkdir(parents=True, exist_ok=True)
        (PLUGINS / name / "usr/libexec/docker/cli-plugins" / name).rename(program)
        shutil.rmtree(PLUGINS / name)
    return program


@contextmanager
def engine(folder: Path) -> Iterator[Docker]:
    """The daemon that answers, if it gets the base images; else one of our own, with stand-ins where there is no
    registry."""
    settings = plugins()
    docker = Docker(settings)
    if docker.works("version"):
        if missing := [tag for tag in IMPORTED if not _has(docker, tag)]:
            pytest.skip(f"the Docker daemon here cannot get {', '.join(missing)}: give it a registry")
        yield docker
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("no Docker daemon answers, and none can be started: apt-get install docker.io, and be root")
    with _daemon(folder) as socket:
        docker = Docker({**settings, "DOCKER_HOST": socket})
        for tag, (make, changes) in IMPORTED.items():
            if not _has(docker, tag):
                _import(docker, tag, make(folder / tag.partition(":")[0]), changes)
        yield docker


def _has(docker: Docker, tag: str) -> bool:
    return docker.works("image", "inspect", tag) or docker.works("pull", "-q", tag)


def _import(docker: Docker, tag: str, root: Path, changes: list[str]) -> None:
    tar = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True, timeout=120)
    docker.run("import", *(word for change in changes for word in ("-c", change)), tar, tag)
    print(f"\nstand-in for {tag}")


@contextmanager
def _daemon(folder: Path) -> Iterator[str]:
    """A dockerd with everything of its own; what it changes in the machine's network is put back."""
    forwards, policy, had_bridge = FORWARD.read_text(), _forward_policy(), BRIDGE.exists()
    address = f"unix://{folder}/docker.sock"
    places = ("--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "dockerd.pid")
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(["dockerd", "-H", address, *places], stdout=log, stderr=log, start_new_session=True)
    try:
        docker, end = Docker({"DOCKER_HOST": address}), time.monotonic() + START_S
        while not docker.works("version"):
            if process.poll() is not None or time.monotonic() > end:
                said = (folder / "dockerd.log").read_text()[-600:]
                pytest.skip(f"a private dockerd does not start here: {said}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
        FORWARD.write_text(forwards)
        if policy:
            subprocess.run(["iptables", "-P", "FORWARD", policy], check=True, timeout=10)
        if not had_bridge and BRIDGE.exists() and shutil.which("ip"):
            subprocess.run(["ip", "link", "delete", BRIDGE.name], check=False, timeout=10)
        subprocess.run(["umount", "-R", "-q", folder / "data", folder / "exec"], check=False, timeout=10)


def _forward_policy() -> str:
    """ACCEPT or DROP; empty where there is no iptables."""
    if shutil.which("iptables") is None:
        return ""
    command = ["iptables", "-S", "FORWARD"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.split()
    return told[2] if told[:2] == ["-P", "FORWARD"] else ""
