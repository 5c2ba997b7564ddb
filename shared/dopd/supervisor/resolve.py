"""From what was asked to what will run: engine, model and ports of this machine, all filled in.

Consumes the loaded config, the environment and the state folder; produces a `Config` for the child processes, and says
what it chose.
"""

import importlib.util
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dopd.config import Config
from dopd.supervisor import ports
from dopd.supervisor.console import Console

NATS_PORT, LMCACHE_PORT = 4222, 5655


def resolve(config: Config, console: Console, demo: bool, env: Mapping[str, str] = os.environ) -> Config:
    """Fill in what is left open. Raises ConfigError when the HTTP port is taken."""
    replace = msgspec.structs.replace
    gateway = config.gateway
    ports.require(gateway.host, gateway.port, "gateway.port")
    gateway = replace(gateway, port=ports.this_or_free(gateway.host, gateway.port))
    engine = replace(config.engine, kind=_kind(config.engine.kind, demo, env))
    if env.get("MODEL"):
        engine = replace(engine, model=env["MODEL"])
    if engine.kind == "vllm" and engine.lmcache_port == 0:
        engine = replace(engine, lmcache_port=ports.this_or_free(engine.lmcache_host, LMCACHE_PORT))
    cluster = replace(config.cluster, state_dir=str(Path(config.cluster.state_dir).absolute()))
    if not cluster.nats_url:
        port = ports.this_or_free("127.0.0.1", NATS_PORT)
        if port != NATS_PORT:
            console.line(f"port {NATS_PORT} is taken, the broker uses {port} (cluster.nats_url names a running one)")
        cluster = replace(cluster, nats_url=f"nats://127.0.0.1:{port}")
    return replace(config, engine=engine, cluster=cluster, gateway=gateway)


def _kind(kind: str, demo: bool, env: Mapping[str, str]) -> str:
    """The engine that runs; ENGINE is what `make` was given."""
    if demo or (kind == "auto" and env.get("ENGINE") == "sim"):
        return "sim"
    if kind == "auto":
        return "vllm" if importlib.util.find_spec("vllm") else "sim"
    return kind


def gpus(env: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that may be used, as CUDA names them; none where there is no driver."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return [name for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(n) for n, line in enumerate(x for x in shown.stdout.splitlines() if x.startswith("GPU "))]
