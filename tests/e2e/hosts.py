"""Two hosts on one machine: network namespaces with a link for the bus and one for KV, which can be cut. Needs root.

Consumes the names of the hosts; produces their addresses, and the words that run a command inside one.
"""

import os
import shutil
import subprocess
from types import TracebackType

import pytest

NETS = {"bus": 1, "kv": 2}


class Hosts:
    """`with Hosts("a", "b") as hosts:`; skips the test where the system does not let us. This machine is `.1`."""

    def __init__(self, *names: str) -> None:
        self._numbers = {name: number for number, name in enumerate(names, 2)}
        self._mark = f"d{os.getpid() % 100_000}"
        self._prefix = f"10.{200 + os.getpid() % 50}"  # what a killed run left behind must not be in the way

    def inside(self, name: str) -> tuple[str, ...]:
        """What stands before a command that runs on this host."""
        return ("ip", "netns", "exec", self._space(name))

    def address(self, net: str, name: str = "") -> str:
        """Of a host, or of this machine."""
        return f"{self._prefix}.{NETS[net]}.{self._numbers[name] if name else 1}"

    def cut(self, net: str, name: str) -> None:
        """Unplug a host's cable."""
        _ip("link", "set", self._link(net, name), "down")

    def mend(self, net: str, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self._link(net, name), "up")

    def __enter__(self) -> "Hosts":
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and the program ip (Debian: iproute2)")
        try:
            self._build()
        except subprocess.CalledProcessError as error:
            self._remove()
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        for net in NETS:
            _ip("link", "add", self._bridge(net), "type", "bridge")
            _ip("address", "add", f"{self.address(net)}/24", "dev", self._bridge(net))
            _ip("link", "set", self._bridge(net), "up")
        for name in self._numbers:
            space = self._space(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            for net in NETS:
                outer = self._link(net, name)
                _ip("link", "add", outer, "type", "veth", "peer", "name", net, "netns", space)
                _ip("link", "set", outer, "master", self._bridge(net), "up")
                _ip("-n", space, "address", "add", f"{self.address(net, name)}/24", "dev", net)
                _ip("-n", space, "link", "set", net, "up")

    def _remove(self) -> None:
        for name in self._numbers:
            _ip("netns", "delete", self._space(name), check=False)  # its links go with it
        for net in NETS:
            _ip("link", "delete", self._bridge(net), check=False)

    def _space(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _bridge(self, net: str) -> str:
        return f"{self._mark}-{net}"

    def _link(self, net: str, name: str) -> str:
        return f"{self._mark}-{net}-{name}"


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True, timeout=20.0)
