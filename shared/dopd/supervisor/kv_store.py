"""`dopd kv-store`: the KV store of this host, for workers that are started one by one.

Consumes `--config` and the environment; becomes the LMCache server that `[engine]` describes, with what it shares with
other hosts behind it, or serves the emulated store.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dopd import config as configs
from dopd.errors import ConfigError
from dopd.runtime.main import add_config_argument
from dopd.supervisor.resolve import LMCACHE_PORT
from dopd.supervisor.stack import lmcache_settings
from dopd.supervisor.state import StateDir


def main(argv: Sequence[str]) -> int:
    """The command. 2 for what cannot be used; else it does not return: the process becomes the store."""
    parser = argparse.ArgumentParser(prog="dopd kv-store", description="Run the KV store of this host's workers.")
    add_config_argument(parser)
    args = parser.parse_args(argv)
    try:
        config = configs.load(args.config)
        if not configs.real_engine(config.engine):
            os.execv(sys.executable, [sys.executable, "-m", "dopd.engine.sim.store", *argv])
        from dopd.engine.vllm import environment  # heavy: imported only where it is used
        from dopd.engine.vllm.store import available, lmcache_command

        if not available():
            raise ConfigError("environment", "lmcache", "it is not installed here; run `make setup`")
        state = StateDir(Path(config.cluster.state_dir))
        state.root.mkdir(parents=True, exist_ok=True)
        state.free_shared_memory()
        settings = lmcache_settings(config, state, port=config.engine.lmcache_port or LMCACHE_PORT)
    except ConfigError as error:
        print(f"dopd kv-store: {error}", file=sys.stderr)
        return 2
    print(f"LMCache on {settings.host}:{settings.port}, its pages on port {settings.http_port}", flush=True)
    command = lmcache_command(settings)
    os.execve(command[0], command, environment.COMMON | os.environ)
