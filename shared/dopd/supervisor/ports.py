"""TCP ports of this machine.

Consumes a host and a port; produces whether it is free, and free ones.
"""

import socket

from dopd.errors import ConfigError


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def this_or_free(host: str, port: int) -> int:
    """The port, or a free one where it is taken or 0."""
    if port and is_free(host, port):
        return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        number: int = probe.getsockname()[1]
    return number


def require(host: str, port: int, key: str) -> None:
    """Raises ConfigError when the port is taken."""
    if not is_free(host, port):
        variable = "DOPD__" + key.replace(".", "__").upper()
        raise ConfigError("config", key, f"port {port} is taken on {host}; end what listens there, or set {variable}")
