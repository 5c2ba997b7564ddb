"""What a split of workers can serve: how busy both pools are, and the share of requests within their targets. Pure.

Consumes a profile, targets and a `Demand` (seconds, tokens, requests); produces an `Alternative` per split
(algorithms.md D5 to D16 in rate form, with the time that decode workers have left for prompts).
"""

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, erfc, exp, sqrt

from dopd.perf.model import step_s, transfer_s
from dopd.perf.profile import Profile
from dopd.policy.base import Alternative
from dopd.slo import Slo

STEP_SHARE = 0.9
"""Of the TPOT target a step may take."""
KV_SHARE = 0.9
LOCAL_SHARE = 0.8
"""Of the time that decode workers have left counts for prompts: these come when they like."""
LATE = 0.1
"""Of the requests of a pool at its limit so many are lost beyond those that do not fit: the late ones are given up
first."""
COLLAPSE = 7.0
BURSTS = 2.0
"""Squared coefficient of variation of the times between arrivals; 1 is a Poisson stream."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Mean tokens and variance of prompts, and what they take on an engine, with and without company in a step.

    E[T_P] = a + b E[ISL] + c (Var(ISL) + E[ISL]^2), algorithms.md D5 and 1.5; in batches the fixed a is shared.
    """

    isl_tokens: float
    alone_s: float
    batched_s: float
    cv2: float

    @property
    def token_s(self) -> float:
        """Engine time per prompt token, in batches."""
        return self.batched_s / self.isl_tokens if self.isl_tokens else 0.0


def prompts_of(profile: Profile, isl_tokens: float, isl_var: float, batch_tokens: float) -> Prompts:
    """Prompts of such lengths when a step takes `batch_tokens` of them. `isl_var` 0 leaves out the Jensen gap (D6)."""
    fixed, token, square = profile.prefill_fixed_s, profile.prefill_token_s, profile.prefill_token2_s
    growing_s = token * isl_tokens + square * (isl_var + isl_tokens**2)
    company = max(1.0, batch_tokens / max(1.0, isl_tokens))
    alone_s = fixed + growing_s
    slope = token + 2 * square * isl_tokens
    return Prompts(isl_tokens, alone_s, fixed / company + growing_s, isl_var * (slope / alone_s) ** 2)


@dataclass(frozen=True, slots=True)
class Demand:
    """What should be served. `prefill_work` is engine seconds per second, `tokens_per_s` are output tokens.

    `context_tokens` is the live context of a decoding request: ISL + OSL / 2 (D8), or what is seen.
    """

    prefill_work: float
    tokens_per_s: float
    context_tokens: float
    prompts: Prompts


class Decoder:
    """One decode worker at a mean context: its step time by concurrency, and the concurrency bound (D7 to D12).

    `bound` is the most requests with steps of at most 0.9 times the TPOT target, KV in 0.9 of the memory, and within
    the engine's places; `binding` says which of them it is. `correction` multiplies the profile's step times (D20).
    `join_s` is what a request's joining takes, per output token: the part of its prompt that fills no whole chunk is
    computed here, between steps.
    """

    def __init__(
        self,
        profile: Profile,
        tpot_s: float,
        context_tokens: float,
        kv_tokens: float = 0,
        correction: float = 1.0,
        join_s: float = 0.0,
    ) -> None:
        self.most_s = STEP_SHARE * tpot_s
        by_memory = int(KV_SHARE * (kv_tokens or profile.kv_total_tokens) / max(1.0, context_tokens))
        self.places = max(1, min(profile.max_running, by_memory))
        self._steps_s = [
            correction * step_s(profile, 0, 0, requests, requests * context_tokens) + requests * join_s
            for requests in range(1, self.places + 1)
        ]
        in_time = [number for number, one_s in enumerate(self._steps_s, 1) if one_s <= self.most_s]
        self.bound = in_time[-1] if in_time else 1
        by_places = "kv_memory" if by_memory < profile.max_running else "places"
        self.binding = by_places if self.bound == self.places else "decode_step"
        # The most at any smaller concurrency: where larger batches begin, a step may cost more per request.
        self._rates = list(accumulate((n / one_s for n, one_s in enumerate(self._steps_s[: self.bound], 1)), max))
        too_long = max(1.0, self._steps_s[self.bound - 1] / tpot_s)
        self.tokens_per_s = self._rates[-1] / too_long

    @property
    def tightness(self) -> float:
        """How much of the time that a step may take it takes at the bound."""
        return min(1.0, self.step_s(self.bound) / self.most_s)

    def step_s(self, requests: float) -> float:
        """Of so many requests, without prompts beside them."""
        return self._steps_s[min(self.places, max(1, ceil(requests))) - 1]

    def left(self, tokens_per_s: float) -> float:
        """The share of its time that one worker has for prompts when its steps take all that the target allows.

        Longer steps mean more requests at a time (Little's law), as many as have places.
        """
        if tokens_per_s <= 0:
            return 1.0
        stretched_s = min(self.most_s, self.places / tokens_per_s)
        return max(0.0, 1.0 - self.step_s(tokens_per_s * stretched_s) / stretched_s)


class Splits:
    """Judges splits under one demand."""

    def __init__(self, profile: Profile, slo: Slo, demand: Demand, decoder: Decoder, local: bool = True) -> None:
        self._demand, self._decoder, self._local = demand, decoder, local
        on_its_way_s = profile.arrival_s + transfer_s(profile, int(demand.prompts.isl_tokens))
        self._patience_s = slo.ttft_s - demand.prompts.alone_s - on_its_way_s

    def judged(self, prefill: int, decode: int) -> Alternative:
        """Of requests, those whose prompt is served in time (waiting times fall off exponentially, Kingman), then
        those that find a place to decode; above the limit of a pool the share that fits: min(r_P, r_D), D14 to D16.
        Prompts that are late hold up no other. Decodes that are too many hold up each other, where their steps at the
        bound leave no time to wait.
        """
        wanted, each = self._demand, self._demand.tokens_per_s / decode
        left = LOCAL_SHARE * self._decoder.left(each) if self._local else 0.0
        servers = prefill + decode * left
        prefill_use, decode_use = wanted.prefill_work / servers, each / self._decoder.tokens_per_s
        begun = 1 / max(1.0, prefill_use)
        kept = max(1.0, begun * decode_use) ** -(1 + COLLAPSE * self._decoder.tightness**2)
        waited, crowded = (
            self._late(servers, min(1.0, prefill_use)),
            self._crowded(decode, min(1.0, begun * decode_use)),
        )
        return Alternative(
            prefill=prefill,
            decode=decode,
            attainment=begun * kept * (1 - LATE * waited) * (1 - LATE * crowded),
            headroom=1 - max(prefill_use, decode_use),
            binding="prefill" if prefill_use >= decode_use else self._decoder.binding,
        )

    def _late(self, servers: float, use: float) -> float:
        """How likely a prompt waits longer than its target allows: GI/G/n by Kingman's tail, Sakasegawa's n."""
        if use <= 0:
            return 0.0
        if self._patience_s <= 0:
            return 1.0
        prompts = self._demand.prompts
        waits = use ** (sqrt(2 * (servers + 1)) - 1)
        mean_s = prompts.alone_s * (BURSTS + prompts.cv2) / 2
        return waits * exp(-self._patience_s * servers * (1 - use) / mean_s) if mean_s else 0.0

    def _crowded(self, decode: int, use: float) -> float:
        """How likely more requests decode than the bound allows, 1 at it: concurrency is about Poisson. Where steps at
        the bound are shorter than they may be, there is time to wait for a place."""
        places = decode * self._decoder.bound
        spread = sqrt(use * places)
        return self._decoder.tightness * erfc((1 - use) * places / spread / sqrt(2)) if spread else 0.0
