"""The budget of `dopd`: what it lets beside decodes, by itself and in the steps of the emulated engine."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from dopd.engine.contract import StepRecord
from dopd.perf.model import step_s
from dopd.perf.profile import PROFILES
from dopd.policy.base import BudgetSpec, StepView, WaitingView
from dopd.policy.dopd import DOPD
from dopd.policy.paced import Paced, knee_tokens
from tests.policy_rig import H200, load, run

H100 = PROFILES["h100-llama-70b-fp8-tp2"]
NUMBERS = {name: getattr(H100, name) for name in (
    "prefill_fixed_s", "prefill_token_s", "prefill_token2_s", "decode_fixed_s", "decode_request_s", "decode_context_s",
)}  # fmt: skip
TARGET_S, BANK_S = 0.9 * 0.08, 60 * 0.1 * 0.08


def view(decodes: int, context: int = 0, prefills: int = 0, waiting: Sequence[int] = (), before: int = 0) -> StepView:
    jobs = [WaitingView(f"j{place}", tokens, 0.0) for place, tokens in enumerate(waiting)]
    return StepView(decodes, context, prefills, False, jobs, 8192, 256, before)


@pytest.mark.parametrize("seed", range(20))
def test_any_stretch_of_steps_takes_the_target_and_the_bank_at_most(seed: int) -> None:
    rng = random.Random(f"paced/{seed}")
    budget = Paced(**NUMBERS)
    state, over_s, worst_s, chunks = budget.initial(), 0.0, 0.0, 0
    for _ in range(2000):
        decodes, before = rng.randrange(1, 250), rng.randrange(0, 8000)
        context = decodes * rng.randrange(100, 3000)
        asked = view(
            decodes, context, rng.randrange(2), [rng.randrange(1, 9000) for _ in range(rng.randrange(3))], before
        )
        state, limit = budget.limit(state, asked)
        tokens = (limit.max_tokens or decodes) - decodes
        chunks += tokens > 0
        plain_s = step_s(H100, 0, 0, decodes, context)
        took_s = step_s(H100, tokens, (before + tokens) ** 2 - before**2, decodes, context)
        # The excess over the target of the worst stretch that ends here.
        over_s = max(0.0, over_s) + took_s - max(TARGET_S, plain_s)
        worst_s = max(worst_s, over_s)
    assert chunks > 100
    assert BANK_S / 4 < worst_s <= BANK_S + 1e-9


def test_without_savings_no_step_is_longer_than_the_target() -> None:
    budget, state = Paced(**NUMBERS, paced=0), 0.0
    for decodes in range(1, 250, 7):
        state, limit = budget.limit(state, view(decodes, decodes * 1000, prefills=1))
        tokens = (limit.max_tokens or 0) - decodes
        assert step_s(H100, tokens, tokens**2, decodes, decodes * 1000) <= TARGET_S
        assert decodes > 100 or tokens > 0


def test_a_short_prompt_does_not_wait_until_a_large_chunk_pays() -> None:
    plain = Paced(**NUMBERS)
    _, limit = plain.limit(0.0, view(10, 1000, waiting=[5]))
    assert limit.max_tokens == 15 and limit.gate == "open"


def test_decodes_that_miss_the_target_by_themselves_let_nothing_start() -> None:
    state, limit = Paced(**{**NUMBERS, "decode_fixed_s": 0.1}).limit(0.3, view(10, 1000, waiting=[500]))
    assert limit.gate == "open", "what was saved before is still there"
    for _ in range(20):
        state, limit = Paced(**{**NUMBERS, "decode_fixed_s": 0.1}).limit(state, view(10, 1000, waiting=[5000]))
    assert (state, limit.gate) == (0.0, "closed")


def test_alone_short_prompts_fill_a_step_and_a_long_one_has_its_own() -> None:
    budget, knee = Paced(**NUMBERS), knee_tokens(H100.prefill_fixed_s, H100.prefill_token_s)
    assert 2000 < knee < 2500
    fill = [knee // 3] * 3
    assert budget.limit(0.0, view(0, waiting=[*fill, 500]))[1].max_running == 3
    assert budget.limit(0.0, view(0, waiting=[5 * knee, 10]))[1].max_running == 1
    assert Paced(**NUMBERS, lengths=0).limit(0.0, view(0, waiting=[5 * knee, 10]))[1].max_running is None


TIGHT_S = 0.008


def overspent(records: Sequence[StepRecord]) -> tuple[int, int]:
    """(chunks beside decodes, those that no savings allowed), by the most that the decodes may have saved."""
    target_s, bank_s = 0.9 * TIGHT_S, 60 * 0.1 * TIGHT_S
    saved_s, chunks, wrong = 0.0, 0, 0
    for record in records:
        prompt = sum(record.tokens.values()) - record.decodes
        if not record.decodes:
            continue
        saved_s = min(bank_s, saved_s + max(0.0, target_s - step_s(H200, 0, 0, record.decodes, 0)))
        if prompt:
            chunks += 1
            spent_s = H200.prefill_token_s * prompt
            wrong += spent_s > saved_s + 1e-9
            saved_s = max(0.0, saved_s - spent_s)
    return chunks, wrong


def test_the_engine_keeps_to_the_budget_in_every_step() -> None:
    asked = load(3, 150, 60.0, longest=12_000, most_osl=60)
    budget = BudgetSpec("dopd.policy.paced:Paced", {"tpot_s": TIGHT_S}, prefills_only=True)
    kept = [overspent(records) for records in run(replace(DOPD, budget=budget), asked).records.values()]
    assert sum(chunks for chunks, _ in kept) > 30
    assert sum(wrong for _, wrong in kept) == 0
    free = [overspent(records) for records in run(replace(DOPD, budget=None), asked).records.values()]
    assert sum(wrong for _, wrong in free) > 0, "the load would not have needed a budget"
