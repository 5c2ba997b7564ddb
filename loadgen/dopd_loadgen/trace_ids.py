"""Ids by which a request is found again in the served system's traces. Pure."""

import random


def trace_of(seed: int, index: int) -> tuple[str, str]:
    """Trace id, and the `traceparent` that asks for a sampled trace of it (W3C Trace Context, 3.2)."""
    trace_id = f"{random.Random(f'{seed}/trace/{index}').getrandbits(128):032x}"
    return trace_id, f"00-{trace_id}-{client_span_of(trace_id)}-01"


def client_span_of(trace_id: str) -> str:
    """The id of the client's own span: half of the trace's, so that it need not be kept with it."""
    return trace_id[16:]
