"""DistServe's placement search: how many workers prefill and how many decode (algorithms.md 5.4, algorithm 1).

Consumes a profile, targets and a schedule whose lengths it draws from; produces a split. One prefill instance and one
decode instance are simulated separately under Poisson arrivals; bisection finds the rate that each sustains with its
P90 within the target; the split is the one with the largest min(n * prefill, m * decode). The engine's parallelism is
fixed here, so the paper's search over it falls away.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dopd.perf.model import step_s, transfer_s
from dopd.perf.profile import Profile
from dopd.policy.static_split import BATCH_TOKENS, MOST_PROMPTS
from dopd.slo import Slo
from dopd_loadgen.model import Planned

REQUESTS, SHARE = 1000, 0.9
"""Requests of one simulation, and the share of them that has to meet the target."""
STEPS = 10
"""Halvings of the interval: to a thousandth of the largest rate."""
BATCHES_TOKENS = (1024, 2048, 4096, BATCH_TOKENS)


@dataclass(frozen=True, slots=True)
class Placed:
    """The split, the prefill batch that saturates best, and what one instance of each phase sustains."""

    prefill: int
    decode: int
    batch_tokens: int
    prefill_rps: float
    decode_rps: float

    @property
    def note(self) -> str:
        """In words."""
        return (
            f"{self.prefill}P{self.decode}D, batch_tokens={self.batch_tokens}: one prefill instance sustains "
            f"{self.prefill_rps:.3g} requests/s, one decode instance {self.decode_rps:.3g}"
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """Lengths in tokens, and gaps between arrivals of 1 request/s in seconds."""

    isl: Sequence[int]
    osl: Sequence[int]
    gaps_s: Sequence[float]


def sample(schedule: Sequence[Planned], seed: int = 0) -> Sample:
    """Requests drawn from the schedule with replacement, at Poisson arrivals."""
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = [schedule[place] for place in rng.integers(0, len(schedule), REQUESTS).tolist()]
    gaps_s = rng.exponential(1.0, REQUESTS).tolist()
    return Sample([one.isl_tokens for one in drawn], [one.osl_tokens for one in drawn], gaps_s)


def place(profile: Profile, slo: Slo, workers: int, schedule: Sequence[Planned], batch_tokens: int = 0) -> Placed:
    """The split of `workers` (2 or more) for this load; `batch_tokens` 0 searches that, too."""
    load = sample(schedule)
    batch, p_rps = best_batch(profile, slo, load, (batch_tokens,) if batch_tokens else BATCHES_TOKENS)
    d_rps = decode_rps(profile, slo, load)
    prefill = max(range(1, workers), key=lambda n: (min(n * p_rps, (workers - n) * d_rps), n * p_rps))
    return Placed(prefill, workers - prefill, batch, p_rps, d_rps)


def best_batch(profile: Profile, slo: Slo, load: Sample, batches: Sequence[int]) -> tuple[int, float]:
    """The prefill batch with which one instance sustains most, and what it sustains."""
    rates = {tokens: prefill_rps(profile, slo, load, tokens) for tokens in batches}
    best = max(rates, key=lambda tokens: (rates[tokens], -tokens))
    return best, rates[best]


def prefill_rps(profile: Profile, slo: Slo, load: Sample, batch_tokens: int) -> float:
    """The rate at which one prefill instance has its P90 TTFT within the target, its capacity when no rate does."""
    most = REQUESTS / sum(_batch_s(profile, [isl]) - profile.prefill_fixed_s for isl in load.isl)
    return _largest(most, lambda rate: _share(prefill_waits_s(profile, load, rate, batch_tokens), slo.ttft_s))


def decode_rps(profile: Profile, slo: Slo, load: Sample) -> float:
    """The rate at which one decode instance has its P90 TPOT within the target, its capacity when no rate does."""
    tokens = sum(osl - 1 for osl in load.osl)
    if not tokens:
        return float("inf")
    full_s = step_s(profile, 0, 0, profile.max_running, profile.max_running * min(load.isl))
    most = REQUESTS * profile.max_running / (tokens * full_s)
    return _largest(most, lambda rate: _share(decode_tpots_s(profile, load, rate), slo.tpot_s))


def _largest(most: float, share: Callable[[float], float]) -> float:
    """By bisection. Where the target is out of reach at any rate, only capacity can say which phase needs more."""
    low, high = 0.0, most
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= SHARE else (low, middle)
    return low or most


def _share(values: Sequence[float], target: float) -> float:
    return sum(value <= target for value in values) / len(values)


def prefill_waits_s(profile: Profile, load: Sample, rate: float, batch_tokens: int) -> list[float]:
    """TTFT of each request: first come first served, whole prompts, up to `batch_tokens` in a batch, longer alone."""
    arrivals = np.cumsum(np.asarray(load.gaps_s) / rate).tolist()
    waits: list[float] = []
    now_s = 0.0
    while len(waits) < len(arrivals):
        first = len(waits)
        now_s = max(now_s, arrivals[first])
        last, tokens = first + 1, load.isl[first]
        while last < min(len(arrivals), first + MOST_PROMPTS) and arrivals[last] <= now_s:
            if tokens + load.isl[last] > batch_tokens:
                break
            tokens, last = tokens + load.isl[last], last + 1
        now_s += _batch_s(profile, load.isl[first:last])
        waits += [now_s - arrivals[place] for place in range(first, last)]
    return waits


def _batch_s(profile: Profile, prompts: Sequence[int]) -> float:
    """A batch in one step, or in as many as a long prompt takes. Its KV is stored meanwhile."""
    total_s, done, tokens = 0.0, 0, sum(prompts)
    while tokens - done > profile.max_step_tokens:
        after = done + profile.max_step_tokens
        total_s += step_s(profile, profile.max_step_tokens, after * after - done * done, 0, 0)
        done = after
    square = sum(isl * isl for isl in prompts) - done * done
    chunks = sum(isl // profile.chunk_tokens for isl in prompts)
    return total_s + step_s(profile, tokens - done, square, 0, 0) + transfer_s(profile, chunks * profile.chunk_tokens)


def decode_tpots_s(profile: Profile, load: Sample, rate: float) -> list[float]:
    """TPOT of each request from its arrival with its KV: continuous batching within requests and memory.

    A request is let in when what it and those inside can hold at their longest fits.
    """
    arrivals = np.cumsum(np.asarray(load.gaps_s) / rate).tolist()
    tpots = [0.0] * len(arrivals)
    coming = [place for place in range(len(arrivals)) if load.osl[place] > 1]
    inside: list[tuple[int, int]] = []  # (step of its last token, request)
    now_s, step, context, held, following = 0.0, 0, 0, 0, 0
    while following < len(coming) or inside:
        if not inside:
            now_s = max(now_s, arrivals[coming[following]])
        while following < len(coming) and arrivals[coming[following]] <= now_s and len(inside) < profile.max_running:
            place = coming[following]
            longest = load.isl[place] + load.osl[place]
            if inside and held + longest > profile.kv_total_tokens:
                break
            heapq.heappush(inside, (step + load.osl[place] - 1, place))
            held, context, following = held + longest, context + load.isl[place], following + 1
        context += len(inside)
        now_s += step_s(profile, 0, 0, len(inside), context)
        step += 1
        while inside and inside[0][0] <= step:
            _, place = heapq.heappop(inside)
            tpots[place] = (now_s - arrivals[place]) / (load.osl[place] - 1)
            held -= load.isl[place] + load.osl[place]
            context -= load.isl[place] + load.osl[place] - 1
    return tpots
