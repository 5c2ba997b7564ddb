"""What a vLLM engine is started with; the defaults fit the tiny model on a CPU.

Consumes the `[engine]` table of the config; produces `VllmSettings`.
"""

import msgspec

from dopd.config import EngineConfig


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`lmcache_port` 0 is an engine without a KV store. Lengths are tokens.

    All workers of one KV store must name the model by the same string: it is part of LMCache's key.
    `chunk_tokens` must be what the store runs with, and a multiple of `block_size`.
    """

    model: str
    dtype: str = "float32"
    seed: int = 0
    tensor_parallel_size: int = 1
    max_model_len: int | None = 2048
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    # vLLM on a CPU takes multiples of 32 only
    block_size: int = 32
    # 4 KiB per token of the tiny model; None lets `gpu_memory_utilization` decide
    kv_cache_memory_bytes: int | None = 64 << 20
    gpu_memory_utilization: float | None = None
    # torch.compile costs 23 s at start and gains nothing on a CPU
    enforce_eager: bool = True
    start_timeout_s: float = 600.0
    # answers by JSON schema
    grammars: bool = True

    kv_domain: str = "local"
    lmcache_host: str = "127.0.0.1"
    lmcache_port: int = 0
    lmcache_gb: float = 1.0
    chunk_tokens: int = 32
    # LMCache's own defaults are 300 s and 10 s: a dead server would hold requests for minutes
    mq_timeout_s: float = 2.0
    heartbeat_s: float = 2.0
    save_decode_cache: bool = True


GPU_DEFAULTS = {
    "dtype": "auto",
    "max_model_len": None,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "kv_cache_memory_bytes": None,
    "gpu_memory_utilization": 0.9,
    "enforce_eager": False,
    "chunk_tokens": 256,
}


def settings_from(config: EngineConfig, model: str, *, cpu: bool) -> VllmSettings:
    """The engine that the config describes. `model` is a hub id or the folder of the tiny model."""
    fields: dict[str, object] = {} if cpu else dict(GPU_DEFAULTS)
    chosen = {
        "max_num_seqs": config.max_running,
        "max_num_batched_tokens": config.max_step_tokens,
        "max_model_len": config.max_model_len,
        "chunk_tokens": config.chunk_tokens,
        "gpu_memory_utilization": config.gpu_memory_utilization,
    }
    fields |= {key: value for key, value in chosen.items() if value}
    if config.gpu_memory_utilization:
        fields["kv_cache_memory_bytes"] = None
    if config.kv_cache_mb:
        fields["kv_cache_memory_bytes"] = config.kv_cache_mb << 20
    fields |= {
        "model": model,
        "seed": config.seed,
        "kv_domain": config.kv_domain,
        "lmcache_host": config.lmcache_host,
        "lmcache_port": config.lmcache_port,
        "lmcache_gb": config.lmcache_gb,
        "save_decode_cache": config.save_decode_cache,
    }
    return msgspec.convert(fields, VllmSettings)
