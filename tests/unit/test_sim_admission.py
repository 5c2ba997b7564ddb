"""What the emulated engine makes of a step's limits: batches, closed gates, budgets of nothing."""

from dataclasses import dataclass, replace

from dopd.engine.contract import Job
from dopd.engine.sim.core import SimCore
from dopd.perf.profile import named
from dopd.policy.base import StepLimit, StepView
from dopd.policy.simple import BesideDecodes
from dopd_proto.request import BatchTag, Sampling

PROFILE = replace(named("h200-llama-3.1-8b-fp8-tp1"), max_step_tokens=100, kv_total_tokens=2560)


@dataclass
class Fixed:
    """Always the same limit; notes the views."""

    answer: StepLimit
    views: list[StepView]

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        self.views.append(step)
        return None, self.answer


def core(limit: StepLimit | None = None, **changes: int) -> SimCore:
    engine = SimCore(replace(PROFILE, **changes), save_decode=False)  # type: ignore[arg-type]
    engine.budget = Fixed(limit, []) if limit is not None else None
    return engine


def submit(engine: SimCore, job_id: str, tokens: int, new: int = 5, batch: BatchTag | None = None) -> None:
    prompt = [3 + ord(job_id[0])] * tokens
    sampling = Sampling(max_tokens=new, temperature=0.0)
    engine.submit(Job(job_id, prompt, tokens, new, sampling, batch), 0, 0, 0.0)


def ask_for_prefills_only(engine: SimCore) -> list[StepView]:
    engine.budget_for_prefills_only = True
    assert isinstance(engine.budget, Fixed)
    return engine.budget.views


def steps(engine: SimCore, count: int, now_s: float = 0.0) -> list[dict[str, int]]:
    """Tokens per job of the next steps."""
    for _ in range(count):
        if engine.begin_step(now_s) is not None:
            engine.end_step(now_s)
    records = [dict(record.tokens) for record in engine.records]
    engine.records.clear()
    return records


def test_a_batch_longer_than_a_step_goes_on_in_the_next_one() -> None:
    engine, tag = core(), BatchTag(batch_id="b", size=3)
    for name in "abc":
        submit(engine, name, 60, batch=tag)
    assert steps(engine, 3)[:2] == [{"a": 60, "b": 40}, {"a": 1, "b": 20, "c": 60}]


def test_what_was_admitted_does_not_meet_the_gate_again() -> None:
    engine = core(StepLimit(gate="batch"))
    submit(engine, "a", 150)
    submit(engine, "b", 10, batch=BatchTag(batch_id="b", size=2))
    submit(engine, "c", 150, batch=BatchTag(batch_id="b", size=2))
    assert steps(engine, 1) == [{"a": 100}]
    engine.budget = Fixed(StepLimit(gate="closed"), [])
    assert steps(engine, 4) == [{"a": 50}, {"a": 1}, {"a": 1}, {"a": 1}]


def test_a_request_that_starts_over_comes_back_through_a_closed_gate() -> None:
    engine = core(kv_total_tokens=160)
    submit(engine, "old", 75, new=20)
    submit(engine, "young", 75, new=20)
    steps(engine, 2)
    engine.budget = Fixed(StepLimit(gate="closed"), [])
    ran = steps(engine, 60)
    assert sum(len(each) == 1 for each in ran) > 5, "memory was never short"
    assert not engine.running and not engine.waiting


def test_the_view_counts_what_is_admitted_as_a_prefill_and_not_as_waiting() -> None:
    engine = core(StepLimit(), max_step_tokens=64)
    for name in "ab":
        submit(engine, name, 100, batch=BatchTag(batch_id="b", size=2, exclusive=True))
    steps(engine, 1)
    steps(engine, 1)
    view = engine.budget.views[-1]  # type: ignore[union-attr]
    assert (view.prefills, view.prefill_context_tokens, list(view.waiting)) == (2, 64, [])
    assert view.exclusive_running


def test_a_budget_of_nothing_stops_the_engine_until_there_is_one_again() -> None:
    engine = core(StepLimit(max_tokens=0))
    submit(engine, "a", 10, new=2)
    assert steps(engine, 3) == []
    engine.budget = None
    assert steps(engine, 3) == [{"a": 10}, {"a": 1}]


def test_a_member_that_is_aborted_holds_the_others_up_only_for_a_while() -> None:
    engine, tag = core(), BatchTag(batch_id="b", size=2)
    submit(engine, "a", 10, batch=tag)
    submit(engine, "gone", 10, batch=tag)
    engine.abort("gone")
    assert steps(engine, 1, now_s=1.0) == []
    assert steps(engine, 1, now_s=2.0) == [{"a": 10}]


def test_a_budget_for_prefills_is_not_asked_for_steps_of_decodes_alone() -> None:
    engine = core(StepLimit(max_tokens=10))
    views = ask_for_prefills_only(engine)
    submit(engine, "a", 15, new=40)
    assert steps(engine, 2) == [{"a": 10}, {"a": 5}]
    asked = len(views)
    assert engine.begin_step(0.0) is not None
    assert len(engine.foresee(0.0)) > 9, "so they can be advanced together"
    engine.end_step(0.0)
    assert steps(engine, 1) == [{"a": 1}, {"a": 1}]
    assert len(views) == asked
    submit(engine, "b", 15)
    assert steps(engine, 1) == [{"a": 1, "b": 9}]
    assert len(views) == asked + 1


def test_simple_leaves_a_step_with_decodes_little_room_for_prompts() -> None:
    engine = core(max_step_tokens=4_000, kv_total_tokens=16_000)
    engine.budget = BesideDecodes(prefill_tokens=300)
    submit(engine, "a", 2_000, new=9)
    assert steps(engine, 1) == [{"a": 2_000}], "alone, a prompt has the whole step"
    submit(engine, "b", 1_000)
    assert steps(engine, 4) == [{"a": 1, "b": 300}] * 3 + [{"a": 1, "b": 100}]
