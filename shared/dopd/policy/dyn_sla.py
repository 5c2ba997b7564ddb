"""DYN-SLA: the planner of NVIDIA Dynamo that sizes pools by profiled throughput, DOPD's stronger baseline.

Consumes views; produces sizes (algorithms.md 1.17). Each pool by itself: tokens per second that are expected, over what
one worker makes at its target. Requests are scheduled as in the released DOPD configurations: every prompt on a prefill
worker, one at a time.
"""

from functools import partial
from math import ceil

from dopd.cluster import ClusterView
from dopd.perf.model import prefill_s, step_s
from dopd.perf.profile import Profile
from dopd.policy.base import ForecastView, Ground, Policy
from dopd.policy.dopd_paper import (
    IDLE_S,
    INTERVAL_S,
    LEAST_PROFILED_TOKENS,
    ONE_AT_A_TIME,
    Remote,
    decode_correction,
    live_context,
)
from dopd.policy.pools import Intervals, Sized, starts
from dopd.slo import Slo

GRID = 100
"""Cells of the profile's surface along the share of KV memory in use (algorithms.md 1.9)."""


class AlwaysRemote(Remote):
    """Every prompt on a prefill worker; decode workers by their load, or with `kv_aware` 0 in turn."""

    def __init__(self, kv_aware: float = 1) -> None:
        super().__init__(conditional=0, kv_aware=kv_aware)


def planner(ground: Ground | None = None, interval_s: float = INTERVAL_S, idle_s: float = IDLE_S) -> Intervals:
    """The released planner."""
    return Intervals(partial(sizes, (ground or Ground()).profile), interval_s, idle_s)


def sizes(profile: Profile, forecast: ForecastView, cluster: ClusterView, slo: Slo) -> Sized:
    """Expected tokens per second over a worker's, for each pool (algorithms.md 1.17, g_P = g_D = 1).

    The prefill correction is min(1, k_p), k_p = observed over profiled TTFT. An observed one has its wait in it, the
    profiled one has none: k_p is above 1, and the correction 1.
    """
    rate, isl, osl = forecast.requests_per_s, forecast.isl_tokens_mean, forecast.osl_tokens_mean
    context = live_context(isl, osl)
    correction = decode_correction(profile, cluster, context)
    prefill_rate = prefill_tokens_per_s(profile, isl)
    decode_rate = decode_tokens_per_s(profile, slo.tpot_s / correction, context)
    return Sized(
        prefill=max(1, ceil(rate * isl / prefill_rate)),
        decode=max(1, ceil(rate * osl / decode_rate)),
        inputs={
            "requests_per_s": rate, "isl_tokens": isl, "osl_tokens": osl, "decode_correction": correction,
            "prefill_tokens_per_s": prefill_rate, "decode_tokens_per_s": decode_rate,
        },
    )  # fmt: skip


def prefill_tokens_per_s(profile: Profile, isl_tokens: float) -> float:
    """What one worker computes of prompts of this length, one at a time."""
    tokens = int(max(LEAST_PROFILED_TOKENS, min(isl_tokens, profile.max_model_len)))
    return tokens / prefill_s(profile, tokens)


def decode_tokens_per_s(profile: Profile, target_s: float, context_tokens: float) -> float:
    """What one worker makes at most with steps of at most `target_s`: of all shares of its memory, from full downwards,
    the first that meets it. Where none does it is the last one, a single request.
    """
    rate = 0.0
    for cell in range(GRID - 1, -1, -1):
        held = cell / (GRID - 1) * profile.kv_total_tokens / context_tokens
        requests = min(max(1.0, held), float(profile.max_running))
        token_s = step_s(profile, 0, 0, requests, requests * context_tokens)
        rate = requests / token_s
        if token_s <= target_s:
            break
    return rate


DYN_SLA = Policy(
    name="dyn-sla",
    scheduler=AlwaysRemote,
    budget=ONE_AT_A_TIME,
    planner=planner,
    starts=starts,
    forecast_models=("arima",),
)
