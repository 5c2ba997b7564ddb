"""The engine contract as checks that take any engine in a `Rig`; each is a test of both engines."""

import asyncio

import pytest

from dopd.engine.contract import StepRecord
from dopd.errors import BadRequest
from dopd.policy.base import BudgetSpec
from tests.engine_rig import Rig, job, prompt, tag

SHORT, LONG = 20, 400


async def a_job_gets_its_tokens_in_order_and_ends_once(rig: Rig) -> None:
    jobs = [job(prompt(SHORT + n), 5 + n) for n in range(6)]
    ended = await rig.run(*jobs)
    for each, done in zip(jobs, ended, strict=True):
        assert done.end == "length"
        assert len(done.tokens) == len(done.times_s) == each.max_new_tokens
        assert done.times_s == sorted(done.times_s)
    await asyncio.sleep(0.1)
    for each in jobs:
        outputs = rig.outputs[each.job_id]
        assert [bool(output.end) for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert [output.cached is not None for output in outputs] == [True] + [False] * (len(outputs) - 1)


async def the_first_output_says_when_the_job_was_first_computed(rig: Rig) -> None:
    """On the clock of the tokens: after another job's last token, before its own first."""
    before = await rig.one(job(prompt(SHORT), 2))
    done = await rig.one(job(prompt(LONG), 3))
    assert done.cached.scheduled_s is not None
    assert before.times_s[-1] <= done.cached.scheduled_s <= done.times_s[0]
    assert done.cached.fetch_s is done.cached.fetched_s is None  # there was nothing to fetch


async def outputs_of_one_step_come_in_one_call(rig: Rig) -> None:
    batch = tag(4)
    jobs = [job(prompt(SHORT), 8, batch=batch) for _ in range(4)]
    ids = {each.job_id for each in jobs}
    before = len(rig.calls)
    await rig.run(*jobs)
    calls = [call for call in rig.calls[before:] if ids & {output.job_id for output in call}]
    assert all(len({output.job_id for output in call}) == len(call) for call in calls)
    assert max(len(call) for call in calls) == 4


async def eight_short_prompts_start_in_one_step(rig: Rig) -> None:
    batch = tag(8)
    jobs = [job(prompt(SHORT), 4, batch=batch) for _ in range(8)]
    await rig.engine.take_records()
    for each in jobs:
        rig.submit(each)
        await asyncio.sleep(0.01)
    for each in jobs:
        await rig.finished(each)
    first = (await rig.records_of(*jobs))[0]
    assert first.tokens == {each.job_id: SHORT for each in jobs}


async def a_batch_that_lacks_a_member_starts_after_a_while(rig: Rig) -> None:
    batch = tag(3)
    jobs = [job(prompt(SHORT), 2, batch=batch) for _ in range(2)]
    await rig.engine.take_records()
    rig.submit(*jobs)
    await asyncio.sleep(0.3)
    assert not await rig.records_of(*jobs)
    for each in jobs:
        assert (await rig.finished(each, timeout_s=10)).end == "length"


async def an_exclusive_prompt_has_no_prefill_beside_it(rig: Rig) -> None:
    first, alone, other = (
        job(prompt(LONG), 30),
        job(prompt(LONG), 4, batch=tag(1, exclusive=True)),
        job(prompt(LONG), 4),
    )
    await rig.engine.take_records()
    await rig.run(first, alone, other)
    records = await rig.engine.take_records()
    during = [record for record in records if _prefills(record, alone.job_id)]
    assert during
    for record in during:
        others = [count for job_id, count in record.tokens.items() if job_id != alone.job_id]
        assert all(count == 1 for count in others), record


async def a_budget_follows_the_number_of_decodes(rig: Rig) -> None:
    await rig.engine.set_budget(BudgetSpec("tests.budgets:FollowDecodes", {"full": 120, "per_decode": 10}))
    try:
        decodes = [job(prompt(SHORT), 120) for _ in range(4)]
        late = job(prompt(LONG), 2)
        rig.submit(*decodes)
        await rig.started(*decodes)
        await rig.engine.take_records()
        await rig.one(late)
        records = await rig.records_of(late)
        for each in decodes:
            await rig.finished(each)
    finally:
        await rig.engine.set_budget(None)
    chunks = [record for record in records if record.tokens[late.job_id] > 1]
    assert len(chunks) >= LONG // 80
    for record in chunks:
        assert sum(record.tokens.values()) <= 120 - 10 * record.decodes
    assert chunks[0].decodes == 4
    assert chunks[0].tokens[late.job_id] == 76


async def a_closed_gate_runs_a_batch_to_completion(rig: Rig) -> None:
    await rig.engine.set_budget(BudgetSpec("tests.budgets:RunToCompletion"))
    try:
        batches = [[job(prompt(SHORT), 30, batch=batch) for _ in range(3)] for batch in (tag(3), tag(3))]
        await rig.engine.take_records()
        rig.submit(*batches[0])
        await rig.started(*batches[0])
        await rig.run(*batches[1])
        records = await rig.engine.take_records()
    finally:
        await rig.engine.set_budget(None)
    ids = [{each.job_id for each in batch} for batch in batches]
    assert not [record for record in records if all(members & record.tokens.keys() for members in ids)]


async def a_budget_may_bound_the_running_requests(rig: Rig) -> None:
    await rig.engine.set_budget(BudgetSpec("tests.budgets:AtMost", {"running": 2}))
    try:
        jobs = [job(prompt(SHORT), 10) for _ in range(6)]
        await rig.engine.take_records()
        await rig.run(*jobs)
        assert max(len(record.tokens) for record in await rig.records_of(*jobs)) == 2
    finally:
        await rig.engine.set_budget(None)


async def an_aborted_job_ends_once(rig: Rig) -> None:
    running, queued = job(prompt(SHORT), 600), job(prompt(SHORT), 600, batch=tag(2))
    rig.submit(running, queued)
    await rig.started(running)
    for each in (running, queued, running):
        rig.engine.abort(each.job_id)
    rig.engine.abort("nobody")
    for each in (running, queued):
        assert (await rig.finished(each)).end == "aborted"
    await asyncio.sleep(0.2)
    for each in (running, queued):
        assert [output.end for output in rig.outputs[each.job_id] if output.end] == ["aborted"]
    assert (await rig.one(job(prompt(SHORT), 3))).end == "length"


async def a_job_that_does_not_emit_ends_without_tokens(rig: Rig) -> None:
    done = await rig.one(job(prompt(SHORT), 1, emit=False))
    assert (done.tokens, done.times_s, done.end) == ([], [], "length")


async def what_can_never_run_is_refused(rig: Rig) -> None:
    most = rig.engine.max_model_len
    for impossible in (job(prompt(most + 1), 1), job(prompt(most - 4), 5), job([], 1)):
        with pytest.raises(BadRequest):
            rig.engine.submit(impossible)
    assert rig.engine.load().waiting == 0


async def the_load_counts_what_is_there(rig: Rig) -> None:
    running, queued = job(prompt(SHORT), 400), job(prompt(LONG), 2, batch=tag(2))
    steps = rig.engine.load().steps
    rig.submit(running, queued)
    assert rig.engine.load().queued_prefill_tokens >= LONG
    await rig.started(running)
    load = rig.engine.load()
    assert (load.decoding, load.alive, load.store_ok) == (1, True, True)
    assert load.context_tokens >= SHORT
    assert load.steps > steps
    for each in (running, queued):
        rig.engine.abort(each.job_id)
        await rig.finished(each)
    await asyncio.sleep(0.3)
    load = rig.engine.load()
    assert (load.waiting, load.decoding, load.queued_prefill_tokens, load.context_tokens) == (0, 0, 0, 0)


def _prefills(record: StepRecord, job_id: str) -> bool:
    return record.tokens.get(job_id, 0) > 1


CHECKS = [
    a_job_gets_its_tokens_in_order_and_ends_once,
    the_first_output_says_when_the_job_was_first_computed,
    outputs_of_one_step_come_in_one_call,
    eight_short_prompts_start_in_one_step,
    a_batch_that_lacks_a_member_starts_after_a_while,
    an_exclusive_prompt_has_no_prefill_beside_it,
    a_budget_follows_the_number_of_decodes,
    a_closed_gate_runs_a_batch_to_completion,
    a_budget_may_bound_the_running_requests,
    an_aborted_job_ends_once,
    a_job_that_does_not_emit_ends_without_tokens,
    what_can_never_run_is_refused,
    the_load_counts_what_is_there,
]
