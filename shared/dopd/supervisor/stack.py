"""Which processes a config stands for, and in which order they start.

Consumes a resolved config; produces the `Spec` of each process, and the workers' in stages.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dopd.bus.common import shown
from dopd.bus.server import nats_command, nats_config
from dopd.config import ENV_PREFIX, Config
from dopd.runtime.main import CONFIG_VARIABLE, OPERATOR_VARIABLE, READY_VARIABLE
from dopd.supervisor.cards import card_of, cards_for, shared
from dopd.supervisor.ports import this_or_free
from dopd.supervisor.ready import Cluster, file_appears, http_ok, speaks
from dopd.supervisor.spec import Probe, Spec
from dopd.supervisor.state import StateDir
from dopd_proto.base import Role

if TYPE_CHECKING:
    from dopd.engine.vllm.store import StoreSettings

AT_ONCE_VLLM = 2  # engines that start together: four at once take longer than two and two
OPERATOR_PORT = f"{ENV_PREFIX}OBSERVABILITY__OPERATOR_PORT"
GATEWAY_RANK, WORKER_RANK, CONTROL_RANK, STORE_RANK, BROKER_RANK = range(5)


def broker(config: Config, state: StateDir, binary: Path) -> Spec:
    """Our own nats-server."""
    to = urlsplit(config.cluster.nats_url)
    host, port = to.hostname or "127.0.0.1", to.port or 4222
    file = state.run / "nats.conf"
    file.write_text(nats_config(state.jetstream, host=host, port=port))
    return Spec(
        "nats",
        tuple(nats_command(binary, file, state.run)),
        speaks(host, port, b"INFO "),
        stop_rank=BROKER_RANK,
        detail=shown(config.cluster.nats_url),
    )


def service(state: StateDir, name: str, *command: str, ready: Probe | None = None, **more: Any) -> Spec:
    """One of our own processes: `python -m MODULE …`. Without a probe it is ready when it has written its file."""
    file = state.run / f"{name}.ready"
    env = {
        CONFIG_VARIABLE: str(state.config_file),
        READY_VARIABLE: str(file),
        OPERATOR_VARIABLE: str(state.operator_file(name)),
    }
    spec = Spec(name, (sys.executable, "-m", *command), ready or file_appears(file), env=env, stop_rank=CONTROL_RANK)
    return replace(spec, **more)


def store(config: Config, state: StateDir) -> Spec:
    """The KV store that the engine kind needs."""
    if config.engine.kind == "sim":
        return service(state, "store", "dopd.engine.sim.store", stop_rank=STORE_RANK)
    return lmcache(config, state)


def lmcache(config: Config, state: StateDir) -> Spec:
    """The LMCache server. Its shared memory has a fixed name, so that one which was killed leaves no second segment."""
    from dopd.engine.vllm import environment
    from dopd.engine.vllm.store import lmcache_command

    settings = lmcache_settings(config, state, port=config.engine.lmcache_port)
    return Spec(
        "lmcache",
        tuple(lmcache_command(settings)),
        http_ok(f"http://{settings.host}:{settings.http_port}/healthcheck"),
        env=environment.COMMON,
        ready_timeout_s=90.0,
        stop_rank=STORE_RANK,
        # LMCache does not start over a segment of the same name.
        before=state.free_shared_memory,
    )


def lmcache_settings(config: Config, state: StateDir, port: int) -> "StoreSettings":
    """What the server runs with, on this port. Raises ConfigError for a shared store that has no address."""
    from dopd.engine.vllm import environment
    from dopd.engine.vllm.settings import settings_from
    from dopd.engine.vllm.store import StoreSettings, resolved, shared_adapter

    engine = settings_from(config.engine, config.engine.model, cpu=environment.on_cpu())
    return resolved(
        StoreSettings(
            host=engine.lmcache_host,
            port=port,
            shm_name=state.shared_memory_name,
            size_gb=engine.lmcache_gb,
            chunk_tokens=engine.chunk_tokens,
            max_workers=max(2, config.cluster.prefill + config.cluster.decode),
            l2=shared_adapter(config.engine.kv_shared),
        )
    )


def forecaster(state: StateDir) -> Spec:
    """The forecaster."""
    return service(state, "forecaster", "dopd_forecaster")


def planner(state: StateDir, answers: Probe) -> Spec:
    """The ratio-planner. Ready when it answers people, which it does once it leads."""
    return service(state, "planner", "dopd_planner", ready=answers)


def gateway(config: Config, state: StateDir) -> Spec:
    """The HTTP side. Ready when it says so, for which it needs a worker.

    Its operator port stays the same when it is started again: browsers that show its page find it there.
    """
    url = gateway_url(config)
    spec = service(
        state,
        "gateway",
        *("dopd_gateway", "--gateway-id", "g1"),
        ready=http_ok(f"{url}/ready"),
        stop_rank=GATEWAY_RANK,
        grace_s=config.worker.stop_grace_s + 10.0,
        ready_timeout_s=worker_timeout_s(config) + 30.0,
        detail=url,
    )
    port = this_or_free(config.observability.operator_host, 0)
    return replace(spec, env={**spec.env, OPERATOR_PORT: str(port)})


def gateway_url(config: Config) -> str:
    """Where a person on this machine finds the API."""
    host = "127.0.0.1" if config.gateway.host in ("", "0.0.0.0", "::") else config.gateway.host
    return f"http://{host}:{config.gateway.port}"


def workers(config: Config, state: StateDir, cluster: Cluster) -> list[list[Spec]]:
    """Workers w1…wN, prefill first by number; stages pair a prefill worker with a decode worker."""
    total = config.cluster.prefill + config.cluster.decode
    first: list[Role] = ["prefill", "decode"]
    roles = [first[n >= config.cluster.prefill] for n in range(total)]
    cards = cards_for(config)
    specs = [_worker(config, state, cluster, n, role, cards) for n, role in enumerate(roles)]
    if config.engine.kind == "sim":
        return [specs]
    pairs = zip_longest(specs[: config.cluster.prefill], specs[config.cluster.prefill :])
    order = [spec for pair in pairs for spec in pair if spec is not None]
    # vLLM measures a card's free memory at its start: two at once on one card would deceive each other.
    at_once = 1 if shared(total, cards) else AT_ONCE_VLLM
    return [order[at : at + at_once] for at in range(0, total, at_once)]


def _worker(config: Config, state: StateDir, cluster: Cluster, number: int, role: Role, cards: Sequence[str]) -> Spec:
    name = f"w{number + 1}"
    spec = service(
        state,
        name,
        *(f"dopd_{role}", "--worker-id", name),
        ready=cluster.serving(name),
        stop_rank=WORKER_RANK,
        grace_s=config.worker.stop_grace_s + 5.0,
        ready_timeout_s=worker_timeout_s(config),
        detail=role,
    )
    if cards:
        spec = replace(spec, env={**spec.env, "CUDA_VISIBLE_DEVICES": card_of(number, cards)})
    return spec


def worker_timeout_s(config: Config) -> float:
    """Weights may have to be downloaded first."""
    return 30.0 if config.engine.kind == "sim" else 1800.0
