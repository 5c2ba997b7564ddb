"""From what was asked to what will run: engine, model and ports of this machine, all filled in.

Consumes the loaded config, the environment and the state folder; produces a `Config` for the child processes, and says
what it chose.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from dopd.config import ClusterConfig, Config
from dopd.engine.sim.pair import pair
from dopd.errors import ConfigError
from dopd.policy import policy_of, sizes
from dopd.supervisor import ports
from dopd.supervisor.cards import cards_for, memory_share
from dopd.supervisor.console import Console

NATS_PORT, LMCACHE_PORT = 4222, 5655


def resolve(config: Config, console: Console, demo: bool, env: Mapping[str, str] = os.environ) -> Config:
    """Fill in what is left open. Raises ConfigError for an unknown name, contradicting sizes, a port that is taken."""
    gateway = config.gateway
    policy = policy_of(config)  # wrong names are told before anything starts
    prefill, decode = sizes(policy, config.cluster.sizes, ClusterConfig().sizes)
    ports.require(gateway.host, gateway.port, "gateway.port")
    gateway = replace(gateway, port=ports.this_or_free(gateway.host, gateway.port))
    engine = replace(config.engine, kind=_kind(config.engine.kind, demo, env))
    if env.get("MODEL"):
        engine = replace(engine, model=env["MODEL"])
    if engine.kind == "sim":
        pair(engine, policy)
    elif engine.model.startswith(("/", ".", "~")) and not Path(engine.model).is_dir():
        raise ConfigError("MODEL", "engine.model", f"there is no folder {engine.model}; give one, or a hub id")
    if engine.kind == "vllm" and engine.lmcache_port == 0:
        engine = replace(engine, lmcache_port=ports.this_or_free(engine.lmcache_host, LMCACHE_PORT))
    folder = str(Path(config.cluster.state_dir).absolute())
    cluster = replace(config.cluster, prefill=prefill, decode=decode, state_dir=folder)
    if not cluster.nats_url:
        port = ports.this_or_free("127.0.0.1", NATS_PORT)
        if port != NATS_PORT:
            console.line(f"port {NATS_PORT} is taken, the broker uses {port} (cluster.nats_url names a running one)")
        cluster = replace(cluster, nats_url=f"nats://127.0.0.1:{port}")
    # Many processes on one machine cannot share a port: each takes a free one.
    if config.observability.operator_port:
        console.line(
            "observability.operator_port is for a service by itself; here each takes a free port (dopd status)"
        )
    observability = replace(config.observability, operator_port=0)
    chosen = replace(config, engine=engine, cluster=cluster, gateway=gateway, observability=observability)
    return _share_cards(chosen, console)


def _kind(kind: str, demo: bool, env: Mapping[str, str]) -> str:
    """The engine that runs; ENGINE is what `make` was given."""
    if demo or (kind == "auto" and env.get("ENGINE") == "sim"):
        return "sim"
    if kind == "auto":
        return "vllm" if importlib.util.find_spec("vllm") else "sim"
    return kind


def _share_cards(config: Config, console: Console) -> Config:
    """Several workers on one card divide its memory."""
    names, workers = cards_for(config), config.cluster.prefill + config.cluster.decode
    share = memory_share(workers, names)
    if not share or config.engine.gpu_memory_utilization:
        return config
    console.line(f"{workers} workers on {len(names)} GPU(s): each takes {share:.0%} of a card's memory")
    return replace(config, engine=replace(config.engine, gpu_memory_utilization=share))
