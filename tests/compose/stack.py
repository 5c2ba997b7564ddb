"""The compose stack of this checkout under test, and clients on HTTP and NATS that know what each answer must be.

Consumes a Docker engine and a folder; produces `Stack` (containers, to scale and to break) and `Clients`.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd import config as configs
from dopd.bus.nats_bus import NatsBus
from dopd.config import Config
from dopd.supervisor import http
from dopd_proto.base import DrainMode, Role
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.subjects import ROLES
from tests.compose.docker import ROOT, Docker
from tests.e2e.live import Asked, Live

COMPOSE = ROOT / "deploy/compose"
HTTP, OPERATOR, NATS = 8000, 9464, 4222
PROJECT, GATEWAYS = "dopd-test", 2
PROFILE = "a100-qwen2.5-14b-bf16-tp1"
"""Steps of 20 to 30 ms: answers take seconds, so that faults meet them in the middle."""
UP_S = 280.0


@dataclass(frozen=True)
class Container:
    """One, by its full id; its host name, which is also a worker's id, is the beginning of that."""

    id: str
    service: str
    state: str
    ports: dict[int, int]
    """Of this machine, by the container's own."""

    @property
    def host(self) -> str:
        return self.id[:12]

    @property
    def url(self) -> str:
        """Of a gateway."""
        return f"http://127.0.0.1:{self.ports[HTTP]}"


class Stack:
    """`docker compose` with this project's files; `more` are those on top of compose.yaml."""

    def __init__(self, docker: Docker, folder: Path, *more: Path, project: str = PROJECT) -> None:
        self.docker, self.folder = docker, folder
        first = _free_ports(2 * GATEWAYS + 1)
        self.nats_port = first + 2 * GATEWAYS
        self.passwords = _passwords()
        config = (COMPOSE / "dopd.toml").read_text().replace('kind = "sim"', f'kind = "sim"\nprofile = "{PROFILE}"')
        (folder / "dopd.toml").write_text(config)
        self.config = configs.load(folder / "dopd.toml", env={})
        env = {
            **self.passwords,
            **{f"DOPD_{name}IMAGE": f"dopd-test/{name.strip('_').lower() or 'control'}:test" for name in IMAGES},
            "DOPD_CONFIG_FILE": str(folder / "dopd.toml"),
            "DOPD_POLICY": "simple",  # roles change when they are told to
            "DOPD_HTTP_PORT": f"{first}-{first + GATEWAYS - 1}",
            "DOPD_OPERATOR_PORT": f"{first + GATEWAYS}-{first + 2 * GATEWAYS - 1}",
            "DOPD_LOAD_SECONDS": "8",
            "DOPD_LOAD_SCALE": "0.5",
            "CA_BUNDLE": os.environ.get("CA_BUNDLE") or os.environ.get("PIP_CERT") or "/dev/null",
            "TEST_NATS_PORT": str(self.nats_port),
            "DOPD_NATS_TLS_DIR": str(folder / "tls"),
        }
        if wheels := os.environ.get("DOPD_TORCH_FROM"):
            env["DOPD_TORCH_FROM"] = wheels
        (folder / "env").write_text("".join(f"{name}={value}\n" for name, value in env.items()))
        files = (COMPOSE / "compose.yaml", *more, ROOT / "tests/compose/compose.test.yaml")
        self._words = (
            "compose", "-p", project, "--env-file", str(folder / "env"), *(f"--file={file}" for file in files),
        )  # fmt: skip

    def compose(self, *words: object, timeout_s: float = 120.0) -> str:
        return self.docker.run(*self._words, *words, timeout_s=timeout_s)

    def build_and_up(self, *profiles: str, build_s: float = 900.0, up_s: float = UP_S) -> None:
        """From this checkout, the images of these profiles' services too; says how long it took."""
        began_s = time.monotonic()
        self.compose(*(f"--profile={name}" for name in profiles), "build", "-q", timeout_s=build_s)
        built_s = time.monotonic()
        self.compose("up", "-d", "--wait", timeout_s=up_s)
        print(f"\nimages built in {built_s - began_s:.1f} s, up and healthy {time.monotonic() - built_s:.1f} s later")

    def up(self, **scale: int) -> None:
        """As many containers of these services as named; waits until all are healthy."""
        self._until_none_is_unhealthy()
        wanted = [f"--scale={name.replace('_', '-')}={number}" for name, number in scale.items()]
        self.compose("up", "-d", "--wait", "--no-build", "--no-recreate", *wanted, timeout_s=UP_S)

    def _until_none_is_unhealthy(self) -> None:
        """`up --wait` gives up at once on a container that is still marked from the fault before: its next check comes
        within 10 s."""
        for _ in range(60):
            marked = [one for one in self.containers() if self._health(one).get("Status") == "unhealthy"]
            if not marked:
                return
            time.sleep(1.0)
        raise AssertionError(f"unhealthy for a minute: {[(one.service, self._health(one)) for one in marked]}")

    def _health(self, container: Container) -> dict[str, Any]:
        return self.inspect(container)["State"].get("Health", {})  # type: ignore[no-any-return]

    def up_with_tls(self) -> Path:
        """All containers anew, with a new certificate of the broker. The CA's."""
        folder = self.folder / "tls"
        subprocess.run([ROOT / "deploy/nats/dev-ca.sh", folder], check=True, capture_output=True, timeout=30)
        (folder / "server.key").chmod(0o644)  # the broker is another user
        self.compose(f"--file={COMPOSE / 'compose.tls.yaml'}", "up", "-d", "--wait", "--no-build", timeout_s=UP_S)
        return folder / "ca.crt"

    def containers(self, service: str = "") -> list[Container]:
        """Those that exist, also where they do not run."""
        told = self.compose("ps", "--all", "--no-trunc", "--format", "json", *([service] if service else []))
        return [
            Container(
                line["ID"], line["Service"], line["State"],
                {port["TargetPort"]: port["PublishedPort"] for port in line["Publishers"] or ()},
            )
            for line in map(json.loads, told.splitlines())
        ]  # fmt: skip

    def inspect(self, container: Container) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker.run("inspect", container.id))[0]
        return found

    def pause(self, container: Container) -> None:
        """The kernel cannot freeze processes at any moment of a busy machine: tries for a while."""
        for _ in range(20):
            if self.docker.works("pause", container.id):
                return
            time.sleep(0.5)
        self.docker.run("pause", container.id)

    def urls(self) -> list[str]:
        """The gateways', as published on this machine."""
        return sorted(one.url for one in self.containers("gateway"))

    async def out(self, *words: object, timeout_s: float = 120.0) -> str:
        """`docker …` beside what else goes on."""
        return await asyncio.to_thread(lambda: self.docker.run(*words, timeout_s=timeout_s))

    async def aside(self, do: Callable[..., Any], *words: Any, **named: Any) -> Any:
        """Any other call beside what else goes on."""
        return await asyncio.to_thread(do, *words, **named)

    def nats_url(self, user: str) -> str:
        password = self.passwords[f"DOPD_NATS_{user.upper()}_PASSWORD"]
        return f"nats://{user}:{password}@127.0.0.1:{self.nats_port}"


IMAGES = ("", "FORECASTER_", "BROKER_", "LOADGEN_", "CPU_")


class Clients(Live):
    """Clients as in the end-to-end tests: the public API as `client`, roles and workers' states as `operator`."""

    def __init__(self, stack: Stack, bus: NatsBus, operator: NatsBus, config: Config) -> None:
        super().__init__(None, bus, config)  # type: ignore[arg-type]  # no processes here: containers
        self.stack, self.operator = stack, operator
        self.gateways: list[str] = []
        self.rng = random.Random("compose")

    async def ask_http(self, isl: int, osl: int, *, url: str = "", **more: Any) -> Asked:
        """Of one of the gateways that are to be given work."""
        return await super().ask_http(isl, osl, url=url or self.rng.choice(self.gateways), **more)

    @asynccontextmanager
    async def load(self, rate: float = 4.0, isl: int = 400, osl: int = 80) -> AsyncIterator[None]:
        """Over HTTP and NATS at once; at the end all is answered, and every token was right."""
        async with self.open_load(rate, isl, osl), self.closed_load(3, isl, osl):
            yield
        assert self.verdict() == []
        assert not self.failures(), self.failures()
        assert not (broken := [asked.broken for asked in self.asked if asked.broken]), broken

    async def set_role(self, worker_id: str, role: Role, drain: DrainMode, until: str = "accepting") -> RolesReply:
        wish = RolesRequest(action="set", worker_id=worker_id, role=role, drain=drain, until=until, timeout_s=60.0)  # type: ignore[arg-type]
        return await self.operator.request(ROLES.at(), wish, (RolesReply,), 65.0)

    async def roles(self, action: str, worker_id: str = "") -> RolesReply:
        wish = RolesRequest(action=action, worker_id=worker_id)  # type: ignore[arg-type]
        return await self.operator.request(ROLES.at(), wish, (RolesReply,), 10.0)

    async def until_ready(self, url: str, limit_s: float = 60.0) -> None:
        """Until this gateway says that it can serve."""
        for _ in range(int(limit_s / 0.5)):
            if (await http.get(f"{url}/ready"))[0] == 200:
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"{url} is not ready after {limit_s:.0f} s")

    async def settled(self, prefill: int = 2, decode: int = 2) -> None:
        """So many workers serve in these roles, and gateways and planner know it."""
        self.gateways = self.stack.urls()
        for url in self.gateways:
            await self.until_ready(url)
        roles = (("prefill", prefill), ("decode", decode))
        await self.until(
            lambda: all(len(self.alive(role)) == count for role, count in roles),
            60.0,
            f"{roles}: {self.cluster.states}",
        )
        await self.until_planner(workers=prefill + decode)

    def alive(self, role: str) -> list[str]:
        """Workers that have spoken within their lease and serve in this role."""
        return [w for w in self.with_role(role) if self.heard(w)]  # type: ignore[arg-type]

    def heard(self, worker_id: str) -> bool:
        state = self.cluster.states[worker_id]
        return self.clock() - state.sent_s < state.lease_s

    def clock(self) -> float:
        """The clock that workers' states are stamped by."""
        return time.time()

    def busiest(self, role: str) -> str:
        return max(self.alive(role), key=self.in_flight)


@asynccontextmanager
async def clients_of(stack: Stack) -> AsyncIterator[Clients]:
    """Connected, and listening to the workers."""
    bus = await NatsBus.connect(stack.nats_url("client"), name="test")
    operator = await NatsBus.connect(stack.nats_url("operator"), name="test-operator")
    try:
        clients = Clients(stack, bus, operator, stack.config)
        clients.gateways = stack.urls()
        await clients.cluster.follow(operator)
        yield clients
    finally:
        await bus.drain(timeout_s=1.0)
        await operator.drain(timeout_s=1.0)


async def first_token_s(url: str, since_s: float) -> float:
    """Seconds from `since_s` (of the loop's clock) to an answer of one token."""
    async with http.request(f"{url}/v1/completions", b'{"model":"emulated","prompt":[5,6,7],"max_tokens":1}') as answer:
        assert answer.status == 200, await answer.body()
        await answer.body()
    return asyncio.get_running_loop().time() - since_s


def _passwords() -> dict[str, str]:
    told = subprocess.run([ROOT / "deploy/nats/passwords.sh"], capture_output=True, text=True, check=True, timeout=10)
    return dict(line.split("=", 1) for line in told.stdout.split())


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(28_000, 30_000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports between 28000 and 30000")
