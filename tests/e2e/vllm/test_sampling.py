"""How tokens are drawn does not hang on where a request is cut: any cut gives what one vLLM engine gives alone."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer

from dopd.engine.contract import Job
from dopd.errors import BadRequest
from dopd.policy.base import BudgetSpec
from dopd_proto.request import Sampling
from tests.engine_rig import Rig, job, prompt

# Engines start in 10 s on idle cores, in minutes beside other tests.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

NEW, END = 24, 2
CUTS = (1, 2, 9, 23)
# So that a random model repeats itself, and penalties change what it says: few tokens to choose from.
FEW = {"logit_bias": dict.fromkeys(range(10, 22), 60.0)}
SCHEMA = json.dumps({
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"],
    "additionalProperties": False,
})  # fmt: skip
HOW: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 2.0, **FEW},
    "frequency": {"frequency_penalty": 1.9, **FEW},
    "repetition": {"repetition_penalty": 1.3, **FEW},
    "all penalties": {"presence_penalty": -1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.1, **FEW},
    "penalties and least length": {
        "presence_penalty": 1.5,
        "min_tokens": 20,
        "ignore_eos": False,
        "logit_bias": {END: 60.0, 5: 62.0, 6: 61.0},
    },
    "seed": {"temperature": 1.0, "seed": 7},
    "seed of more than 32 bits": {"temperature": 1.2, "seed": -(2**40) - 5, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    "seed and penalties": {"temperature": 1.0, "seed": 11, "frequency_penalty": 1.0, **FEW},
    "schema": {"json_schema": SCHEMA, "ignore_eos": False},
    "schema, seed and penalties": {"json_schema": SCHEMA, "temperature": 1.0, "seed": 5, "presence_penalty": 1.0},
}


def sampled(tokens: Sequence[int], made: Sequence[int], new: int, how: dict[str, Any]) -> Job:
    fields = {"max_tokens": NEW, "temperature": 0.0, "ignore_eos": True} | how
    return job([*tokens, *made], new, prompt_tokens=len(tokens), sampling=Sampling(**fields))


async def in_two(a: Rig, b: Rig, tokens: Sequence[int], cut: int, how: dict[str, Any]) -> list[int]:
    first = await a.one(sampled(tokens, (), cut, how))
    if first.end == "stop":
        return first.tokens
    return first.tokens + (await b.one(sampled(tokens, first.tokens, NEW - len(first.tokens), how))).tokens


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
async def test_a_cut_changes_no_token(a: Rig, b: Rig, alone: Rig, how: dict[str, Any]) -> None:
    tokens = prompt(100, seed=3)
    expected = (await alone.one(sampled(tokens, (), NEW, how))).tokens
    plain = (await alone.one(sampled(tokens, (), NEW, FEW if "logit_bias" in how else {}))).tokens
    assert expected != plain, "it would prove nothing"
    for cut in CUTS:
        assert await in_two(a, b, tokens, cut, how) == expected, f"cut at {cut}"


async def test_a_seeded_prompt_of_several_steps_draws_as_a_short_one(a: Rig, b: Rig, alone: Rig) -> None:
    """The steps of a prompt draw as well, and what they drew is taken back."""
    how = {"temperature": 1.0, "seed": 3}
    tokens = prompt(1200, seed=4)
    expected = (await alone.one(sampled(tokens, (), NEW, how))).tokens
    assert await in_two(a, b, tokens, 5, how) == expected
    # Once its KV is in the engine's own cache the same prompt takes a single step.
    assert (await alone.one(sampled(tokens, (), NEW, how))).tokens == expected


async def test_requests_beside_each_other_do_not_mix_what_they_bring_along(a: Rig, b: Rig, alone: Rig) -> None:
    prompts = [prompt(40, seed=each) for each in range(len(HOW))]
    expected = await alone.run(*(sampled(p, (), NEW, how) for p, how in zip(prompts, HOW.values(), strict=True)))
    heads = await a.run(*(sampled(p, (), 6, how) for p, how in zip(prompts, HOW.values(), strict=True)))
    rests = [
        sampled(p, head.tokens, NEW - len(head.tokens), how)
        for p, head, how in zip(prompts, heads, HOW.values(), strict=True)
        if head.end != "stop"
    ]
    got = iter(await b.run(*rests))
    whole = [head.tokens if head.end == "stop" else head.tokens + next(got).tokens for head in heads]
    assert whole == [each.tokens for each in expected]


async def test_an_answer_by_schema_is_json_of_it(a: Rig, b: Rig, model: Any) -> None:
    words = Tokenizer.from_file(str(model / "tokenizer.json"))
    schema = json.dumps({"type": "object", "properties": {"b": {"enum": ["x", "y"]}}, "required": ["b"]})
    how = {"json_schema": schema, "ignore_eos": False, "max_tokens": 60}
    said = [token for token in await in_two(a, b, prompt(30, seed=8), 3, how) if token != END]
    text = words.decode(said)
    assert text.lstrip().startswith("{") and '"b"' in text


async def test_a_schema_that_cannot_be_kept_to_is_refused_and_harms_nobody(a: Rig) -> None:
    for schema in ('{"type": 5}', '{"type": "string", "pattern": "("}', "[" * 200 + "]" * 200):
        with pytest.raises(BadRequest):
            a.submit(sampled(prompt(10), (), 3, {"json_schema": schema}))
    assert (await a.one(job(prompt(10), 3))).end == "length"


async def test_answers_by_schema_wait_at_the_gate_as_others_do(a: Rig) -> None:
    await a.engine.set_budget(BudgetSpec("tests.budgets:AtMost", {"running": 1}))
    try:
        schemas = [json.dumps({"type": "object", "properties": {f"p{n}": {"type": "integer"}}}) for n in range(3)]
        jobs = [sampled(prompt(20), (), 12, {"json_schema": schema}) for schema in schemas]
        await a.run(*jobs, job(prompt(20), 3))
        assert all(len(record.tokens) == 1 for record in await a.records_of(*jobs))
    finally:
        await a.engine.set_budget(None)


async def test_logprobs_are_those_of_one_engine_and_come_with_their_tokens(a: Rig, b: Rig, alone: Rig) -> None:
    tokens = prompt(100, seed=5)
    whole, head = sampled(tokens, (), NEW, {"logprobs": 3}), sampled(tokens, (), 1, {"logprobs": 3})
    expected = await alone.one(whole)
    first = await a.one(head)
    tail = sampled(tokens, first.tokens, NEW - 1, {"logprobs": 3})
    # Another request in the same batch asks for more.
    beside = job(prompt(20), NEW, sampling=Sampling(max_tokens=NEW, temperature=0.0, ignore_eos=True, logprobs=9))
    rest, _ = await b.run(tail, beside)
    assert first.tokens + rest.tokens == expected.tokens
    reference = rows(alone, whole)
    got = rows(a, head) + rows(b, tail)
    assert len(got) == len(reference) == NEW
    for (ids, values), (their_ids, their_values), token in zip(got, reference, expected.tokens, strict=True):
        assert ids == their_ids and len(ids) == 4 and ids[0] == ids[1] == token
        assert values == pytest.approx(their_values, abs=1e-3)
    assert len(rows(b, beside)[0][0]) == 10


def rows(rig: Rig, each: Job) -> list[tuple[Sequence[int], Sequence[float]]]:
    return [row for output in rig.outputs[each.job_id] for row in output.logprobs]
