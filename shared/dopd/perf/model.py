"""Step and transfer times from a profile. Pure arithmetic, seconds everywhere."""

from dopd.perf.profile import Profile

FAR = 2.0
"""So many times the most that was measured is far beyond it."""


def step_s(
    profile: Profile, prefill_tokens: float, prefill_square: float, decodes: float, context_tokens: float
) -> float:
    """Duration of one engine step.

    `prefill_tokens` are computed in chunks from position a to b; `prefill_square` is the sum of b^2 - a^2, which makes
    the chunks of a prompt add up to the whole (workloads.md section 3). A mixed step pays the larger fixed cost once
    (our assumption: prefill chunks ride along with the decode's weight read).
    """
    fixed = variable = 0.0
    if prefill_tokens:
        fixed = profile.prefill_fixed_s
        variable = profile.prefill_token_s * prefill_tokens + profile.prefill_token2_s * prefill_square
    if decodes and profile.large_batch_requests and decodes >= profile.large_batch_requests:
        fixed = max(fixed, profile.large_fixed_s)
        variable += profile.large_request_s * decodes + profile.large_context_s * context_tokens
    elif decodes:
        fixed = max(fixed, profile.decode_fixed_s)
        variable += profile.decode_request_s * decodes + profile.decode_context_s * context_tokens
    return fixed + variable


def beyond(
    profile: Profile, prompt_tokens: float = 0.0, batch_requests: float = 0.0, context_tokens: float = 0.0
) -> list[str]:
    """Why a step like this lies far beyond what was measured: one reason for each size; none when it does not.

    A profile that came as coefficients has no grid and says nothing.
    """
    if profile.grid is None:
        return []
    sizes = {"prompt_tokens": prompt_tokens, "batch_requests": batch_requests, "context_tokens": context_tokens}
    return [
        f"{profile.name}: {name} {size:g} in a step, measured up to {getattr(profile.grid, name):g}"
        for name, size in sizes.items()
        if size > FAR * getattr(profile.grid, name)
    ]


def prefill_s(profile: Profile, tokens: int) -> float:
    """Time to compute a prompt alone."""
    return step_s(profile, tokens, tokens * tokens, 0, 0)


def transfer_s(profile: Profile, tokens: int) -> float:
    """Time to move the KV of so many tokens over an idle link; nothing takes no time."""
    if tokens <= 0:
        return 0.0
    return profile.transfer_fixed_s + tokens * profile.kv_token_bytes / profile.transfer_bytes_per_s
