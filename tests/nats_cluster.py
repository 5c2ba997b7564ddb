"""A NATS cluster for tests: three real servers on loopback, each of which can be killed and comes back as it was."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec

from dopd.bus.server import nats_command, nats_config
from tests.nats_server import NatsServer, quiet_port, server_binary

NODES = 3


class Node(NatsServer):
    """One of them. Its routes are known before any of them runs."""

    def __init__(self, binary: Path, folder: Path, name: str, routes: dict[str, int]) -> None:
        super().__init__(binary, folder)
        self._name, self._routes = name, routes

    def _command(self, port: int) -> list[str]:
        routes = [f"nats://127.0.0.1:{each}" for each in self._routes.values()]
        cluster = {"name": "test", "listen": f"127.0.0.1:{self._routes[self._name]}", "routes": routes}
        # Otherwise clients learn every address of this machine.
        text = msgspec.json.encode({**cluster, "no_advertise": True}).decode()
        config = self._folder / "nats.conf"
        plain = nats_config(self._folder / "js", port=port, max_payload=self.max_payload)
        config.write_text(f"{plain}server_name: {self._name}\ncluster {text}\n")
        return nats_command(self._binary, config, self._folder)

    def monitoring(self, path: str) -> Any:
        """A page of its monitoring port."""
        assert self._addresses is not None
        return httpx.get(f"{self._addresses.monitoring_url}/{path}", timeout=5.0).json()


class NatsCluster:
    """`with NatsCluster(folder) as brokers:`; `url` names all three."""

    def __init__(self, folder: Path) -> None:
        names = [f"n{number + 1}" for number in range(NODES)]
        routes: dict[str, int] = {}
        for name in names:
            routes[name] = quiet_port()
        self.nodes: dict[str, Node] = {}
        for name in names:
            (folder / name).mkdir(parents=True)
            self.nodes[name] = Node(server_binary(), folder / name, name, routes)
        self._end = ExitStack()

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes.values())

    def node_of(self, client: str) -> str:
        """The node to which a client of this name is connected."""
        for name, node in self.alive().items():
            if any(each.get("name") == client for each in node.monitoring("connz")["connections"]):
                return name
        raise AssertionError(f"{client} is connected to none")

    def leader_of(self, stream: str) -> str:
        """The node that leads a stream; "" while they elect one."""
        for node in self.alive().values():
            for account in node.monitoring("jsz?streams=1&accounts=1&config=1").get("account_details", []):
                for each in account.get("stream_detail", []):
                    if each["name"] == stream and (leader := each.get("cluster", {}).get("leader", "")):
                        return str(leader)
        return ""

    def alive(self) -> dict[str, Node]:
        """The nodes that run."""
        return {name: node for name, node in self.nodes.items() if node._process is not None}

    def __enter__(self) -> "NatsCluster":
        for node in self.nodes.values():
            self._end.callback(node.stop)
            node.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()
