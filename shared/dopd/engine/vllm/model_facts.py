"""What a started engine says of itself.

Consumes vLLM's config after the start; produces the limits and capacities that our side needs, in tokens.
"""

from dataclasses import dataclass

from vllm.config import VllmConfig

from dopd.engine.vllm.sampling import Vocabulary
from dopd.engine.vllm.settings import VllmSettings


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Lengths in tokens. `store_total_tokens` 0: no store. `kv_token_bytes`: on all layers and ranks."""

    max_model_len: int
    kv_token_bytes: int
    kv_total_tokens: int
    store_total_tokens: int
    vocabulary: Vocabulary


def facts_of(config: VllmConfig, settings: VllmSettings) -> ModelFacts:
    """The facts of an engine that is ready."""
    cache = config.cache_config
    # Block 0 is vLLM's null block.
    kv_tokens = (cache.num_gpu_blocks - 1) * cache.block_size
    store_bytes = settings.lmcache_gb * 2**30 if settings.lmcache_port else 0
    token_bytes = _token_bytes(config)
    return ModelFacts(
        max_model_len=config.model_config.max_model_len,
        kv_token_bytes=token_bytes,
        kv_total_tokens=kv_tokens,
        store_total_tokens=int(store_bytes / token_bytes),
        vocabulary=Vocabulary.of(config),
    )


def _token_bytes(config: VllmConfig) -> int:
    """KV of one token on all layers and ranks."""
    model, parallel = config.model_config, config.parallel_config
    heads = model.get_num_kv_heads(parallel) * parallel.tensor_parallel_size
    size: int = 2 * model.get_num_layers(parallel) * heads * model.get_head_size() * model.dtype.itemsize
    return size
