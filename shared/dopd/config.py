"""One TOML file is one experiment: frozen structs that reject unknown keys, overridden by `DOPD__SECTION__KEY=value`.

Consumes a TOML file (or nothing: every key has a default) and the environment; produces `Config`.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from dopd.errors import ConfigError


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file."""


class ClusterConfig(Section, frozen=True):
    """Which workers run, and where the broker is. `nats_url` empty: `dopd up` starts one and says its address."""

    prefill: int = 2
    decode: int = 2
    nats_url: str = "nats://127.0.0.1:4222"
    state_dir: str = ".dopd"


class SloConfig(Section, frozen=True):
    """Targets of a request that brings none of its own."""

    ttft_s: float = 2.0
    tpot_s: float = 0.08


class PolicyConfig(Section, frozen=True):
    """A policy by name, or as `package.module:NAME`; `params` go to its scheduler, budget and planner."""

    name: str = "simple"
    params: dict[str, float] = {}


class GatewayConfig(Section, frozen=True):
    """`kv_budget_share`: the part of a KV store that may hold prefilled prompts which no decode worker has fetched."""

    host: str = "127.0.0.1"
    port: int = 8000
    heartbeat_s: float = 0.5
    lease_s: float = 3.0
    timeout_s: float = 600.0
    work_timeout_s: float = 2.0
    resend_timeout_s: float = 1.0
    max_attempts: int = 5
    max_waiting: int = 10_000
    kv_budget_share: float = 0.5
    window_s: float = 10.0


class ForecasterConfig(Section, frozen=True):
    """`alpha` is the weight of the newest window."""

    horizon_s: float = 10.0
    alpha: float = 0.3


class PlannerConfig(Section, frozen=True):
    """`round_s` between rounds; a command is repeated each round until read back, for `command_timeout_s` at most."""

    round_s: float = 0.5
    command_timeout_s: float = 60.0
    lease_s: float = 5.0
    dry_run: bool = False


class WorkerConfig(Section, frozen=True):
    """A worker without engine progress for `stall_s` while work is queued counts as dead; silent for `lease_s`, too.

    `max_requests` is the admission credit granted in all, 0 for what the engine can run at once.
    """

    heartbeat_s: float = 0.25
    lease_s: float = 3.0
    stall_s: float = 15.0
    max_requests: int = 0
    resend_buffer_s: float = 30.0


class EngineConfig(Section, frozen=True):
    """`kind` "auto" takes vLLM where it is installed. `profile` and the `sim_…` keys are for the emulated engine.

    `model` is a hub id or a path; empty makes the tiny local model.
    """

    kind: Literal["auto", "sim", "vllm"] = "auto"
    model: str = ""
    seed: int = 0
    profile: str = "h200-llama-3.1-8b-fp8-tp1"
    max_running: int = 0
    max_step_tokens: int = 0
    max_model_len: int = 0
    kv_domain: str = "local"
    chunk_tokens: int = 0
    save_decode_cache: bool = True
    sim_store_tokens: int = 4_000_000
    gpu_memory_utilization: float = 0.0
    lmcache_host: str = "127.0.0.1"
    lmcache_port: int = 0
    lmcache_gb: float = 1.0


class WorkloadConfig(Section, frozen=True):
    """The load that `dopd up --demo` puts on, requests per second and mean lengths in tokens."""

    requests_per_s: float = 2.0
    isl_tokens: int = 600
    osl_tokens: int = 100
    seed: int = 0


class LogConfig(Section, frozen=True):
    """`format` "auto" is console on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Config(Section, frozen=True):
    """Everything, resolved."""

    cluster: ClusterConfig = ClusterConfig()
    slo: SloConfig = SloConfig()
    policy: PolicyConfig = PolicyConfig()
    gateway: GatewayConfig = GatewayConfig()
    forecaster: ForecasterConfig = ForecasterConfig()
    planner: PlannerConfig = PlannerConfig()
    worker: WorkerConfig = WorkerConfig()
    engine: EngineConfig = EngineConfig()
    workload: WorkloadConfig = WorkloadConfig()
    log: LogConfig = LogConfig()


ENV_PREFIX = "DOPD__"


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> Config:
    """Read the file, then the environment's overrides. Raises ConfigError naming place, key and fix."""
    tables: dict[str, Any] = {}
    if path is not None:
        tables = _read(path)
        _convert(tables, str(path))
    for variable, value in sorted(env.items()):
        if variable.startswith(ENV_PREFIX):
            _override(tables, variable, value)
    return _convert(tables, "environment (" + ENV_PREFIX + "…)")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            str(path), "file", f"cannot be read ({error.strerror}); give an existing TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), "syntax", f"{error}; mend the TOML") from error


def _override(tables: dict[str, Any], variable: str, value: str) -> None:
    keys = variable.removeprefix(ENV_PREFIX).lower().split("__")
    if len(keys) < 2:
        raise ConfigError(variable, "name", "use DOPD__SECTION__KEY, for example DOPD__SLO__TPOT_S=0.02")
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    try:
        table[keys[-1]] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        table[keys[-1]] = value


def _convert(tables: dict[str, Any], where: str) -> Config:
    try:
        return msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        text, _, key = str(error).partition(" - at `$.")
        raise ConfigError(where, key.rstrip("`") or "file", f"{text}; see docs/configuration.md") from error
