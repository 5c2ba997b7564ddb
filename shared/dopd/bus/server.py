"""How a nats-server of ours is found and started; for `dopd up` and for tests, which own the process.

Consumes: the environment and a folder. Produces: a binary's path, a config text, a command line, and the addresses.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dopd.bus.common import DEFAULT_MAX_PAYLOAD
from dopd.errors import ConfigError

RANDOM_PORT = -1
"""The server picks a free port itself and writes it into its ports file: no race for a number."""

_ROOT = Path(__file__).resolve().parents[3]
# Debian puts it there, outside an ordinary user's PATH.
_SYSTEM = Path("/usr/sbin/nats-server")
_PLACES = (".tools/bin/nats-server", ".tools/nats/usr/sbin/nats-server")


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """Where a started server listens: for clients, and for monitoring over HTTP."""

    url: str
    monitoring_url: str


def find_nats_server() -> Path:
    """NATS_SERVER_BIN, PATH, /usr/sbin, then `.tools`. Raises ConfigError, which says how to get one."""
    named = os.environ.get("NATS_SERVER_BIN")
    if named:
        if not _is_program(Path(named)):
            raise ConfigError(
                "environment", "NATS_SERVER_BIN", f"{named} is no program; name a nats-server or unset it"
            )
        return Path(named)
    on_path = shutil.which("nats-server")
    candidates = [
        *([Path(on_path)] if on_path else []),
        _SYSTEM,
        *(root / place for root in (_ROOT, Path.cwd()) for place in _PLACES),
    ]
    for candidate in candidates:
        if _is_program(candidate):
            return candidate
    raise ConfigError("environment", "NATS_SERVER_BIN", "no nats-server found; run `make setup`, or name one here")


def nats_config(
    store_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = RANDOM_PORT,
    http_port: int = RANDOM_PORT,
    max_payload: int = DEFAULT_MAX_PAYLOAD,
    max_mem: str = "64M",
    max_file: str = "1G",
) -> str:
    """The text of a config file. Loopback only by default: the broker has no password."""
    return f"""\
listen: {_quoted(f"{host}:{port}")}
http: {_quoted(f"{host}:{http_port}")}
max_payload: {max_payload}
jetstream {{ store_dir: {_quoted(str(store_dir))}, max_mem: {max_mem}, max_file: {max_file} }}
"""


def nats_command(binary: Path, config: Path, ports_dir: Path) -> list[str]:
    """The command line. The server writes its ports into `ports_dir`, and exits with 1 on SIGTERM."""
    return [str(binary), "-c", str(config), "--ports_file_dir", str(ports_dir)]


def read_addresses(ports_dir: Path, pid: int) -> ServerAddresses | None:
    """Where the server with this process id listens; None as long as it is not ready."""
    try:
        ports = json.loads((ports_dir / f"nats-server_{pid}.ports").read_text())
        return ServerAddresses(url=ports["nats"][0], monitoring_url=ports["monitoring"][0])
    except (FileNotFoundError, json.JSONDecodeError):
        return None  # it is being written


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _quoted(text: str) -> str:
    # The config language takes JSON strings.
    return json.dumps(text)
