"""Parameters that depend on profile and load: found by simulation on a tuning schedule, or by arithmetic.

Consumes a `Setting` and a schedule; produces a parameter and, in words, how it was found.
"""

from collections.abc import Sequence
from dataclasses import replace

from dopd.perf.model import step_s
from dopd.perf.profile import Profile, named
from dopd.policy import policy_named
from dopd.policy.aggregated import BUDGETS_TOKENS
from dopd.slo import Slo
from dopd_loadgen.compare.ground import attempt, simulation, slo_of
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.compare.placement import BATCHES_TOKENS, best_batch, sample
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.report.metrics import tpots_s, ttfts_s

SEED = 0
AHEAD_BATCHES = 3
"""Batches of prompts at a prefill worker: one that is done and not heard of yet, one that runs, and the next."""
_LIKELY_FIRST = (2048, 1024, 4096, 512, 8192, 256)
"""The same budgets, with those that mostly win before those that are then cut short."""
_TYPICAL_DECODES, _TYPICAL_CONTEXT_TOKENS = 64, 64 * 1000


def tuned_budget(setting: Setting, schedule: Sequence[Planned]) -> tuple[int, str]:
    """The token budget of aggregated serving with the fewest misses, and of equal ones the most room to the targets."""
    assert sorted(_LIKELY_FIRST) == list(BUDGETS_TOKENS)
    span_s = max(planned.at_s for planned in schedule)
    found: dict[int, tuple[int, float]] = {}
    for budget in _LIKELY_FIRST:
        policy = policy_named("aggregated", {"budget_tokens": budget})
        contender = Contender("aggregated", policy, setting.workers, 0)
        limit = min((missed for missed, _ in found.values()), default=float("inf"))
        tried = attempt(simulation(contender, setting, SEED, span_s), schedule, setting, limit)
        if tried is not None:
            found[budget] = tried[0], _closeness(tried[1], slo_of(setting))
    best = min(found, key=lambda budget: found[budget])
    missed, close = found[best]
    tried_with = f"{len(schedule)} requests in {span_s:.0f} s"
    return best, f"budget_tokens={best} of {_listed()} on {tried_with}: {missed} missed, P99 at {close:.0%} of a target"


def _listed() -> str:
    return ", ".join(str(budget) for budget in BUDGETS_TOKENS)


def _closeness(run: Run, slo: Slo) -> float:
    """The larger of P99 TTFT and P99 TPOT as shares of their targets."""
    kinds = ((ttfts_s(run.records), slo.ttft_s), (tpots_s(run.records), slo.tpot_s))
    return max((sorted(each)[int(0.99 * (len(each) - 1))] / target for each, target in kinds if each), default=0.0)


def chunk_beside_decodes(profile: Profile, slo: Slo) -> int:
    """Prompt tokens that a step may take beside decodes: the most that leaves it within the TPOT target.

    It matters only where a worker has changed roles and still has work of both kinds.
    """
    able = (
        tokens
        for tokens in reversed(BUDGETS_TOKENS)
        if step_s(profile, tokens, tokens * tokens, _TYPICAL_DECODES, _TYPICAL_CONTEXT_TOKENS) <= slo.tpot_s
    )
    return next(able, BUDGETS_TOKENS[0])


def tuned_split(contender: Contender, setting: Setting, schedule: Sequence[Planned]) -> Contender:
    """A static split with that chunk, and the prefill batch with which an instance sustains most on this load."""
    profile, slo = named(setting.config.engine.profile), slo_of(setting)
    batch, _ = best_batch(profile, slo, sample(schedule), BATCHES_TOKENS)
    ahead = AHEAD_BATCHES * batch
    params = {
        "prefill_tokens": chunk_beside_decodes(profile, slo),
        "batch_tokens": batch,
        "ahead_tokens": ahead,
        "ahead_s": min(slo.ttft_s / 2, AHEAD_BATCHES * profile.prefill_fixed_s + ahead * profile.prefill_token_s),
    }
    note = ", ".join(f"{key}={value:.4g}" for key, value in params.items())
    return replace(contender, policy=policy_named(contender.policy.name, params), note=note)
