"""Where a command finds the cluster.

Consumes what the person gave, the config and the state folder; produces the broker's address.
"""

from pathlib import Path

from dopd import config as configs


def nats_url(given: str | None, file: Path | None) -> str:
    """The broker: as given, as configured, that of a running `dopd up`, or the default. Raises ConfigError."""
    if given:
        return given
    config = configs.load(file)
    running = Path(config.cluster.state_dir) / "run" / "config.json"
    if not config.cluster.nats_url and running.exists():
        config = configs.load(running, env={})
    return config.cluster.broker_url
