"""GPU profiles: small fitted coefficients with their source. `PROFILES` is the shipped list.

Fits and origins: workloads.md section 3 (prefill t = c0 + c1*n + c2*n^2, decode step t = c0 + c1*batch + c2*context).
"""

from dataclasses import dataclass

from dopd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine (model, and `gpus` GPUs as its tensor parallelism) as numbers, all times in seconds.

    Prefill: fixed, per token, per token squared. Decode step: fixed, per request, per token of live context.
    KV move: fixed and bytes/s.
    """

    name: str
    source: str
    prefill_fixed_s: float
    prefill_token_s: float
    prefill_token2_s: float
    decode_fixed_s: float
    decode_request_s: float
    decode_context_s: float
    kv_token_bytes: int
    kv_total_tokens: int
    transfer_fixed_s: float = 0.39e-3
    transfer_bytes_per_s: float = 146e9
    max_running: int = 256
    max_step_tokens: int = 8192
    max_model_len: int = 131_072
    block_tokens: int = 16
    chunk_tokens: int = 256
    gpus: int = 1


_RDMA = "KV move: H800 8x RoCE, 0.39 ms + bytes / 146 GB/s"
_COMPOSED = f"kernel times (vLLM 0.19), corrected: prefill 15 ms + 1.3x, decode + 1.1 ms + 24 us/request; {_RDMA}"

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="h200-llama-3.1-8b-fp8-tp1",
            source=f"NVIDIA Dynamo's published planner profile (measured, vLLM 2025-08), least squares; {_RDMA}",
            prefill_fixed_s=18.55e-3,
            prefill_token_s=14.11e-6,
            prefill_token2_s=0.492e-9,
            decode_fixed_s=4.389e-3,
            decode_request_s=36.94e-6,
            decode_context_s=29.55e-9,
            kv_token_bytes=131_072,
            kv_total_tokens=945_029,
        ),
        Profile(
            name="h100-llama-70b-fp8-tp2",
            source=_COMPOSED,
            prefill_fixed_s=15e-3 + 1.3 * 14.078e-3,
            prefill_token_s=1.3 * 62.664e-6,
            prefill_token2_s=1.3 * 1.201e-9,
            decode_fixed_s=16.07e-3 + 1.1e-3,
            decode_request_s=41.61e-6 + 24e-6,
            decode_context_s=55.362e-9,
            kv_token_bytes=327_680,
            kv_total_tokens=262_145,
            gpus=2,
        ),
        Profile(
            name="a100-qwen2.5-14b-bf16-tp1",
            source=_COMPOSED,
            prefill_fixed_s=15e-3 + 1.3 * 17.1e-3,
            prefill_token_s=1.3 * 91.6e-6,
            prefill_token2_s=1.3 * 3.39e-9,
            decode_fixed_s=20.6e-3 + 1.1e-3,
            decode_request_s=58.8e-6 + 24e-6,
            decode_context_s=127e-9,
            kv_token_bytes=196_608,
            kv_total_tokens=247_446,
        ),
    )
}


def named(name: str) -> Profile:
    """A shipped profile. Raises ConfigError with the list when the name is unknown."""
    if name not in PROFILES:
        raise ConfigError("[engine]", "profile", f"unknown profile {name!r}; use one of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]
