"""Ids by which a request is found again in the served system's traces. Pure: a function of the seed and the index."""

import random


def trace_of(seed: int, index: int) -> tuple[str, str]:
    """Trace id, and the `traceparent` that asks for a sampled trace of it (W3C Trace Context, 3.2)."""
    bits = random.Random(f"{seed}/trace/{index}").getrandbits(192)
    trace_id, span_id = f"{bits >> 64:032x}", f"{bits & (1 << 64) - 1:016x}"
    return trace_id, f"00-{trace_id}-{span_id}-01"
