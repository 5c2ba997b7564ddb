"""A budget that keeps the mean step at the target: what short steps have saved is spent on chunks of prompts.

Consumes step views; produces token limits (algorithms.md 1.10, 6.11, after Kairos). The time per output token is a mean
over the answer, so a step may be long when others were short, and one large chunk costs less than many small ones.
Without a clock: time is what the model of the step predicts.
"""

from dataclasses import fields, replace
from math import sqrt

from dopd.perf.model import step_s
from dopd.policy.base import Ground, StepLimit, StepView
from dopd.policy.static_split import whole_prompts

DEFAULT = Ground()
WASTE = 0.05
"""Of a chunk's time may be fixed cost; a smaller chunk waits for more time."""
SATURATED = 0.1
"""Prompts whose fixed cost is no more than this of their time fill the GPU: more of them take longer together."""


def knee_tokens(fixed_s: float, token_s: float, share: float = SATURATED) -> int:
    """Tokens at the knee of the prefill's cost: with so many the fixed cost is `share` of the rest (1.10, 6.7).

    70B on 2 H100: 2,246.
    """
    return max(1, int(fixed_s / (share * token_s)))


class Paced:
    """Beside decodes, chunks of prompts as time has been saved; alone, prompts as they fill the GPU.

    Any n steps take at most n times `share` of the target and `bank_s`, unless decodes alone take longer. With the
    share that is kept back, the answers of at least `short_tokens` keep their target: so much is `bank_s` at most. No
    chunk takes longer than `chunk_s`.
    `paced` 0: no step is longer than the target. `lengths` 0: any prompts fill a step of the engine.
    """

    def __init__(
        self,
        tpot_s: float = DEFAULT.slo.tpot_s,
        prefill_fixed_s: float = DEFAULT.profile.prefill_fixed_s,
        prefill_token_s: float = DEFAULT.profile.prefill_token_s,
        prefill_token2_s: float = DEFAULT.profile.prefill_token2_s,
        decode_fixed_s: float = DEFAULT.profile.decode_fixed_s,
        decode_request_s: float = DEFAULT.profile.decode_request_s,
        decode_context_s: float = DEFAULT.profile.decode_context_s,
        large_batch_requests: float = DEFAULT.profile.large_batch_requests,
        large_fixed_s: float = DEFAULT.profile.large_fixed_s,
        large_request_s: float = DEFAULT.profile.large_request_s,
        large_context_s: float = DEFAULT.profile.large_context_s,
        share: float = 0.9,
        short_tokens: float = 60,
        chunk_s: float = 0.25,
        paced: float = 1,
        lengths: float = 1,
    ) -> None:
        given = locals()
        known = {field.name: given[field.name] for field in fields(DEFAULT.profile) if field.name in given}
        self._profile = replace(DEFAULT.profile, **known)
        self._step_s, self._paced, self._lengths = share * tpot_s, bool(paced), bool(lengths)
        self._bank_s = short_tokens * (tpot_s - self._step_s)
        self._chunk_s = min(chunk_s, self._bank_s)
        self._knee_tokens = knee_tokens(prefill_fixed_s, prefill_token_s)
        self._added_s = max(0.0, prefill_fixed_s - decode_fixed_s)
        self._least_tokens = max(1, int(self._added_s / (WASTE * prefill_token_s)))

    def initial(self) -> float:
        """Seconds saved so far."""
        return 0.0

    def limit(self, state: float, step: StepView) -> tuple[float, StepLimit]:
        """The tokens of the next step. What a chunk may take is counted as spent, whether or not it takes it all."""
        if not step.decodes:
            return 0.0, whole_prompts(step, self._knee_tokens) if self._lengths else StepLimit()
        plain_s = step_s(self._profile, 0, 0, step.decodes, step.context_tokens)
        saved_s = self._step_s - plain_s + (state if self._paced else 0.0)
        saved_s = max(0.0, min(self._bank_s, saved_s))
        wanted = step.max_tokens if step.prefills else min(step.max_tokens, sum(job.tokens for job in step.waiting))
        if not wanted:
            return saved_s, StepLimit()
        tokens = min(self._tokens(min(saved_s, self._chunk_s), step.prefill_context_tokens), wanted)
        if tokens < min(self._least_tokens, wanted):
            return saved_s, StepLimit(step.decodes, gate="closed")
        return saved_s - self._cost_s(tokens, step.prefill_context_tokens), StepLimit(step.decodes + tokens)

    def _tokens(self, time_s: float, before: int) -> int:
        """The most that `time_s` more in a step allow, behind a context of `before` tokens: a square's root."""
        left_s, square = time_s - self._added_s, self._profile.prefill_token2_s
        slope = self._profile.prefill_token_s + 2 * square * before
        if left_s <= 0:
            return 0
        return int(2 * left_s / (slope + sqrt(slope * slope + 4 * square * left_s)))

    def _cost_s(self, tokens: int, before: int) -> float:
        square = (before + tokens) ** 2 - before**2
        return self._added_s + self._profile.prefill_token_s * tokens + self._profile.prefill_token2_s * square
