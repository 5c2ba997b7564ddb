"""One TOML file is one experiment: frozen structs that reject unknown keys, overridden by `DOPD__SECTION__KEY=value`.

Consumes a TOML file (or nothing: every key has a default) and the environment; produces `Config`.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from dopd.errors import ConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file."""


class ClusterConfig(Section, frozen=True):
    """Which workers run, and where the broker is.

    `nats_url` empty: `dopd up` starts a broker; a service started by itself looks at the default port. With
    `nats_ca_file`, the PEM file of a CA, services speak TLS alone and only with a broker whose certificate it signed.
    """

    prefill: Count = 2
    decode: Count = 2
    nats_url: str = ""
    nats_ca_file: str = ""
    state_dir: str = ".dopd"

    def __post_init__(self) -> None:
        if self.prefill + self.decode == 0:
            raise ValueError("no worker: give prefill or decode at least 1")

    @property
    def sizes(self) -> tuple[int, int]:
        """(prefill, decode) workers."""
        return self.prefill, self.decode

    @property
    def broker_url(self) -> str:
        """Where services connect."""
        return self.nats_url or DEFAULT_NATS_URL


class SloConfig(Section, frozen=True):
    """Targets of a request that brings none of its own."""

    ttft_s: Positive = 2.0
    tpot_s: Positive = 0.08


class PolicyConfig(Section, frozen=True):
    """A policy by name, or as `package.module:NAME`; `params` go to its scheduler, budget and planner."""

    name: str = "dopd"
    params: dict[str, float] = {}


class GatewayConfig(Section, frozen=True):
    """`kv_budget_share`: the part of a KV store that may hold prefilled prompts which no decode worker has fetched.

    `chat_max_tokens` bounds the answer of a chat that names no `max_tokens`. Each API key may send
    `requests_per_s_per_key` (0: any number), and after a pause `burst_per_key` at once. With `api_keys_file` only those
    with a key in it are served over HTTP.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    heartbeat_s: Positive = 0.5
    lease_s: Positive = 3.0
    timeout_s: Positive = 600.0
    work_timeout_s: Positive = 2.0
    resend_timeout_s: Positive = 1.0
    max_attempts: AtLeastOne = 5
    max_waiting: AtLeastOne = 10_000
    chat_max_tokens: AtLeastOne = 4096
    requests_per_s_per_key: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    burst_per_key: AtLeastOne = 10
    api_keys_file: str = ""
    kv_budget_share: Share = 0.5
    window_s: Positive = 10.0


class HttpConfig(Section, frozen=True):
    """What clients' connections may take. Beyond `max_connections` a connection is told 503 and closed.

    A request's header is to come within `header_timeout_s`, its body within `body_timeout_s` more; `max_receiving_mb`
    (MiB) bounds what is held of all requests that have not come in whole. An answer that nobody reads is given up
    after `write_timeout_s`. `keep_alive_s` is longer than clients keep idle connections, so that none is closed under a
    request on its way.
    """

    max_connections: AtLeastOne = 16_384
    max_header_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 32_768
    header_timeout_s: Positive = 20.0
    body_timeout_s: Positive = 60.0
    write_timeout_s: Positive = 60.0
    keep_alive_s: AtLeastOne = 75
    max_receiving_mb: AtLeastOne = 256


class ForecasterConfig(Section, frozen=True):
    """Arrivals are seen in bins of `bin_s`; `horizons_s` are multiples of it.

    Of `models` the best of late is used, for each series and horizon. "arima" is fitted anew every `refit_bins`, within
    `refit_budget_s`. Prompts below `short_tokens` count as ultra-short.
    """

    bin_s: Positive = 10.0
    horizons_s: tuple[Positive, ...] = (10.0, 60.0, 300.0)
    models: tuple[str, ...] = ("last", "mean-50", "ewma", "ses", "kalman", "block-ses")
    refit_bins: AtLeastOne = 30
    refit_budget_s: Positive = 5.0
    short_tokens: AtLeastOne = 128


class PlannerConfig(Section, frozen=True):
    """`round_s` between rounds; a command is repeated each round until read back, for `command_timeout_s` at most."""

    round_s: Positive = 0.5
    command_timeout_s: Positive = 60.0
    lease_s: Positive = 5.0
    dry_run: bool = False


class WorkerConfig(Section, frozen=True):
    """A worker without engine progress for `stall_s` while work is queued counts as dead; silent for `lease_s`, too.

    `max_requests` is the admission credit granted in all, 0 for what the engine can run at once; `max_prefills` the
    credit in the prefill role, small so that the gateway's queue stays where it can be re-ordered. Without progress
    for `slow_s` no credit is granted. On SIGTERM work in hand gets `stop_grace_s` before it is given back.
    """

    heartbeat_s: Positive = 0.25
    lease_s: Positive = 3.0
    slow_s: Positive = 2.0
    stall_s: Positive = 15.0
    max_requests: Count = 0
    max_prefills: Count = 16
    resend_buffer_s: Positive = 30.0
    stop_grace_s: Positive = 10.0


class EngineConfig(Section, frozen=True):
    """`kind` "auto" takes vLLM where it is installed. `profile`, `decode_profile` and the `sim_…` keys are for the
    emulated engine. A `decode_profile` of its own makes decode workers unlike prefill workers: roles then stay.

    `model` is a hub id or a path; empty makes the tiny local model. `kv_shared` is a store behind the stores of several
    domains, `redis://HOST:PORT`; for the emulated engine the domain of another emulated store. A token of KV takes
    `kv_shared_token_s` more through it: policies count with that.
    """

    kind: Literal["auto", "sim", "vllm"] = "auto"
    model: str = ""
    seed: int = 0
    profile: str = "h200-llama-3.1-8b-fp8-tp1"
    decode_profile: str = ""
    max_running: Count = 0
    max_step_tokens: Count = 0
    max_model_len: Count = 0
    kv_domain: str = "local"
    kv_shared: str = ""
    kv_shared_token_s: Annotated[float, msgspec.Meta(ge=0)] = 1e-4
    chunk_tokens: Count = 0
    save_decode_cache: bool = True
    sim_store_tokens: AtLeastOne = 4_000_000
    gpu_memory_utilization: Share = 0.0
    kv_cache_mb: Count = 0
    lmcache_host: str = "127.0.0.1"
    lmcache_port: Port = 0
    lmcache_gb: Positive = 1.0


class WorkloadConfig(Section, frozen=True):
    """The load that `dopd up --demo` puts on, requests per second and mean lengths in tokens."""

    requests_per_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    isl_tokens: AtLeastOne = 600
    osl_tokens: AtLeastOne = 100
    seed: int = 0


class LogConfig(Section, frozen=True):
    """`format` "auto" is console on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class ObservabilityConfig(Section, frozen=True):
    """The operator port, which each service has for itself: `/metrics` and `/health`. 0: the system picks one."""

    operator_host: str = "127.0.0.1"
    operator_port: Port = 0


class Config(Section, frozen=True):
    """Everything, resolved."""

    cluster: ClusterConfig = ClusterConfig()
    slo: SloConfig = SloConfig()
    policy: PolicyConfig = PolicyConfig()
    gateway: GatewayConfig = GatewayConfig()
    http: HttpConfig = HttpConfig()
    forecaster: ForecasterConfig = ForecasterConfig()
    planner: PlannerConfig = PlannerConfig()
    worker: WorkerConfig = WorkerConfig()
    engine: EngineConfig = EngineConfig()
    workload: WorkloadConfig = WorkloadConfig()
    log: LogConfig = LogConfig()
    observability: ObservabilityConfig = ObservabilityConfig()


ENV_PREFIX = "DOPD__"


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> Config:
    """Read the file, then the environment's overrides. Raises ConfigError naming place, key and fix."""
    tables: dict[str, Any] = {}
    if path is not None:
        tables = _read(path)
        _convert(tables, str(path))
    for variable, value in sorted(env.items()):
        if variable.startswith(ENV_PREFIX):
            tables = _overridden(tables, variable, value)
    return _convert(tables, str(path))


def dump(config: Config) -> bytes:
    """The config as JSON that `load` reads back."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            str(path), "file", f"cannot be read ({error.strerror}); give an existing TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "file", f"is no text ({error.reason}); give a TOML file in UTF-8") from error
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(str(path), "syntax", f"{error}; mend that line") from error


def _overridden(tables: dict[str, Any], variable: str, value: str) -> dict[str, Any]:
    """The tables with one variable's value. It is read as TOML (numbers, true, lists), else taken as it stands."""
    keys = variable.removeprefix(ENV_PREFIX).lower().split("__")
    if len(keys) < 2 or not all(keys):
        raise ConfigError(variable, "name", "use DOPD__SECTION__KEY, for example DOPD__SLO__TPOT_S=0.02")
    plain = _with(tables, keys, value)
    try:
        changed = _with(tables, keys, tomllib.loads(f"v = {value}")["v"])
    except tomllib.TOMLDecodeError:
        changed = plain
    try:
        _convert(changed, variable)
    except ConfigError as error:
        if not error.fix.startswith("Expected `str`"):
            raise
        _convert(plain, variable)  # a text that looks like a number: a model called 405
        return plain
    return changed


def _with(tables: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    inner = tables.get(keys[0], {})
    if len(keys) > 1:
        value = _with(inner if isinstance(inner, dict) else {}, keys[1:], value)
    return tables | {keys[0]: value}


def _convert(tables: dict[str, Any], where: str) -> Config:
    try:
        return msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise _explained(where, text, place.strip("`.")) from None


def _explained(where: str, text: str, place: str) -> ConfigError:
    """An unknown key is named together with what may stand there; other errors say what was expected."""
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown is None:
        return ConfigError(where, place or "file", f"{text}; see docs/configuration.md")
    table = getattr(Config(), place) if place else Config()
    key, known = unknown[1], table.__struct_fields__
    close = difflib.get_close_matches(key, known, 1)
    fix = f"did you mean {close[0]!r}?" if close else "known here: " + ", ".join(known)
    return ConfigError(where, f"{place}.{key}".strip("."), f"unknown; {fix}")


def real_engine(engine: EngineConfig) -> bool:
    """Whether the config means vLLM on this machine."""
    return engine.kind == "vllm" or (engine.kind == "auto" and find_spec("vllm") is not None)


def served_name(engine: EngineConfig) -> str:
    """The model's name to clients: the hub id, or the folder's own name."""
    if not engine.model:
        return "tiny-llama" if real_engine(engine) else "emulated"
    return Path(engine.model).name if Path(engine.model).is_dir() else engine.model
