"""Where a command finds the cluster.

Consumes what the person gave, the config and the state folder; produces the broker's address, its CA's file, and a
connection.
"""

from pathlib import Path

from dopd import config as configs
from dopd.bus.common import shown
from dopd.bus.nats_bus import NatsBus
from dopd.errors import BrokerRefuses, BusError

CONNECT_S = 2.0


def broker(given: str | None, file: Path | None) -> tuple[str, str]:
    """The broker as given, as configured, that of a running `dopd up`, or the default: URL, and the CA's file as
    configured ("": none). Raises ConfigError."""
    config = configs.load(file)
    if given:
        return given, config.cluster.nats_ca_file
    running = Path(config.cluster.state_dir) / "run" / "config.json"
    if not config.cluster.nats_url and running.exists():
        config = configs.load(running, env={})
    return config.cluster.broker_url, config.cluster.nats_ca_file


async def connect(url: str, ca_file: str, name: str) -> NatsBus:
    """A command's connection. Raises BusError, which tells a person what to do."""
    try:
        return await NatsBus.connect(url, name, ca_file=ca_file, connect_timeout_s=CONNECT_S)
    except BrokerRefuses:
        raise
    except BusError:
        raise BusError(f"no broker answers at {shown(url)}; is the cluster up? (`dopd up`, or --nats URL)") from None
