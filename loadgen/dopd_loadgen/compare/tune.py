"""Parameters that depend on profile and load: found by simulation on a tuning schedule, or by arithmetic.

Consumes a `Setting` and a schedule; produces a parameter and, in words, how it was found.
"""

from collections.abc import Sequence
from dataclasses import replace

from dopd.perf.model import step_s
from dopd.perf.profile import Profile, named
from dopd.policy import policy_named
from dopd.policy.aggregated import BUDGETS_TOKENS
from dopd.policy.static_split import static_split
from dopd.slo import Slo
from dopd_loadgen.compare.ground import attempt, simulation, slo_of
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.compare.ratio import likeliest_first, prefill_share
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.report.metrics import tpots_s, ttfts_s

SEED = 0
AHEAD_BATCHES = 3
"""Batches of prompts at a prefill worker: one that is done and not heard of yet, one that runs, and the next."""
AHEAD_SHARES = (0.5, 0.75)
"""Of the TTFT target; the second is tried with the best batch alone."""
_BATCHES_LIKELY_FIRST = (1024, 2048, 512, 4096, 8192)
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
    """A static split with the prefill batch, and the time ahead that makes a prompt late, that miss fewest.

    Small batches follow the order of the queue closest, large ones use the GPU best: under load that is a factor of
    four. Found on the split that suits the load's mix, so all splits have the same and only the ratio tells them apart.
    """
    likeliest = likeliest_first(setting.workers, prefill_share(named(setting.config.engine.profile), schedule))[0]
    split = Contender(contender.name, static_split(*likeliest), *likeliest)
    best: tuple[int, int, float] | None = None
    for batch in _BATCHES_LIKELY_FIRST:
        best = _fewer(best, split, batch, AHEAD_SHARES[0], setting, schedule)
    assert best is not None, "the first is never cut short"
    missed, batch, share = _fewer(best, split, best[1], AHEAD_SHARES[1], setting, schedule) or best
    params = split_params(setting, batch, share)
    note = ", ".join(f"{key}={value:.4g}" for key, value in params.items())
    note += f": {missed} of {len(schedule)} missed as {likeliest[0]}P{likeliest[1]}D"
    return replace(contender, policy=policy_named(contender.policy.name, params), note=note)


def _fewer(
    best: tuple[int, int, float] | None,
    split: Contender,
    batch: int,
    share: float,
    setting: Setting,
    schedule: Sequence[Planned],
) -> tuple[int, int, float] | None:
    """Misses, batch and share: these, or the best so far when it has no more misses."""
    policy = policy_named(split.policy.name, split_params(setting, batch, share))
    what = simulation(replace(split, policy=policy), setting, SEED, max(planned.at_s for planned in schedule))
    tried = attempt(what, schedule, setting, float("inf") if best is None else best[0] - 1)
    return best if tried is None else (tried[0], batch, share)


def split_params(setting: Setting, batch_tokens: int, ahead_share: float) -> dict[str, float]:
    """Parameters of a static split with this batch; `ahead_share` is of the TTFT target."""
    slo = slo_of(setting)
    return {
        "prefill_tokens": chunk_beside_decodes(named(setting.config.engine.profile), slo),
        "batch_tokens": batch_tokens,
        "ahead_tokens": AHEAD_BATCHES * batch_tokens,
        "ahead_s": ahead_share * slo.ttft_s,
    }
