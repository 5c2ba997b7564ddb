"""What the text side lets in, what it makes of it, and how an answer ends."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from dopd.errors import BadRequest, RequestError, Unavailable, UnknownModel
from dopd_gateway.stream import Piece
from dopd_gateway.validate import check_engine, check_fields, check_prompt, sampling_of
from dopd_proto.base import pack_tokens
from dopd_proto.request import Chunk, Completion, Generate
from tests.text_side import EOS, MODEL, ScriptedGateway, ids_of, pieces, text_gateway

SAID = " brown fox jumps"


def request(**fields: Any) -> Generate:
    return Generate(**{"model": MODEL, "prompt": "The quick", "max_tokens": 100, **fields})


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, but must be at least 1"),
    ({"max_tokens": -3}, "max_tokens", "-3"),
    ({"min_tokens": -1}, "min_tokens", "at least 0"),
    ({"min_tokens": 101}, "min_tokens", "101.*max_tokens.*100"),
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": float("nan")}, "temperature", "nan"),
    ({"temperature": float("inf")}, "temperature", "inf"),
    ({"top_p": 0.0}, "top_p", "above 0"),
    ({"top_p": 1.1}, "top_p", "at most 1"),
    ({"top_p": float("nan")}, "top_p", "nan"),
    ({"top_k": -2}, "top_k", "-2"),
    ({"seed": 2**63}, "seed", "64 bits"),
    ({"priority": -(2**63) - 1}, "priority", "64 bits"),
    ({"timeout_s": 0.0}, "timeout_s", "above 0"),
    ({"timeout_s": float("inf")}, "timeout_s", "inf"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "5 strings.*at most 4"),
    ({"stop": ["a", ""]}, "stop", "empty string"),
]


@pytest.mark.parametrize(("fields", "param", "text"), WRONG, ids=str)
def test_a_field_out_of_range_is_refused_with_its_value(fields: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(BadRequest, match=text) as caught:
        check_fields(request(**fields), MODEL)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "seed": -(2**63)},
        {"max_tokens": 1, "min_tokens": 1, "stop": ["a", "b", "c", "d"], "timeout_s": 0.1, "priority": -5},
    ],
    ids=str,
)
def test_a_field_at_the_edge_of_its_range_is_taken(fields: dict[str, Any]) -> None:
    check_fields(request(**fields), MODEL)


def test_another_model_is_unknown() -> None:
    with pytest.raises(UnknownModel, match=f"'other'.*'{MODEL}'"):
        check_fields(request(model="other"), MODEL)


@pytest.mark.parametrize(
    ("tokens", "text"), [([], "empty"), ([5, 400], "id 400, but ids are 0 to 399"), ([-1], "id -1")], ids=str
)
def test_a_prompt_that_is_none_of_the_model_is_refused(tokens: list[int], text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        check_prompt(tokens, request(), vocab_size=400, max_model_len=1000)


def test_prompt_and_answer_must_fit_into_the_context_together() -> None:
    check_prompt([1] * 900, request(max_tokens=100), 400, 1000)
    with pytest.raises(BadRequest, match=r"context is 1000 tokens, but 1001.*901.*100") as caught:
        check_prompt([1] * 901, request(max_tokens=100), 400, 1000)
    assert caught.value.param == "max_tokens"
    with pytest.raises(BadRequest) as caught:
        check_prompt([1] * 1000, request(max_tokens=1), 400, 1000)
    assert caught.value.param == "prompt"


def test_before_a_worker_told_the_context_length_requests_may_come_again_later() -> None:
    with pytest.raises(Unavailable):
        check_engine(request(), ("logprobs",), 0)


@pytest.mark.parametrize(("top_k", "kept"), [(-1, 0), (0, 0), (5, 5), (400, 0), (10**30, 0)])
def test_a_top_k_that_leaves_all_tokens_in_is_none(top_k: int, kept: int) -> None:
    assert sampling_of(request(top_k=top_k), 400, 5, 1000, 100).top_k == kept


def test_each_of_several_answers_has_a_seed_of_its_own_and_minus_one_is_none() -> None:
    def seed(asked: int | None, choice: int) -> int | None:
        return sampling_of(request(seed=asked), 400, 5, 1000, 100, choice).seed

    assert [seed(7, choice) for choice in range(3)] == [7, 8, 9]
    assert (seed(2**63 - 1, 1), seed(None, 1), seed(-1, 1)) == (-(2**63), None, None)


async def test_nothing_is_queued_for_a_refused_request() -> None:
    gateway = ScriptedGateway()
    for wrong in (request(model="x"), request(top_p=2.0), request(prompt=[999]), request(prompt="")):
        with pytest.raises(RequestError):
            await text_gateway(gateway).complete(wrong)
    assert gateway.inbounds == []


async def test_a_completion_has_all_text_and_counts() -> None:
    gateway = ScriptedGateway(pieces(ids_of(SAID), [2, 3]))
    got = await text_gateway(gateway).complete(request(return_tokens=True))
    assert (got.text, got.finish_reason, got.tokens) == (SAID, "length", pack_tokens(ids_of(SAID)))
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(ids_of("The quick")), len(ids_of(SAID)))
    assert not gateway.streams[0].cancelled.is_set()


async def read(gateway: ScriptedGateway, asked: Generate) -> tuple[list[Chunk], Completion]:
    got = [message async for message in text_gateway(gateway).stream(asked)]
    *chunks, end = got
    assert isinstance(end, Completion)
    return [chunk for chunk in chunks if isinstance(chunk, Chunk)], end


async def test_a_stream_is_chunks_in_order_then_the_completion_without_text() -> None:
    chunks, end = await read(ScriptedGateway(pieces(ids_of(SAID))), request(return_tokens=True))
    assert "".join(c.text for c in chunks) == SAID and end.text == ""
    assert [c.seq for c in chunks] == list(range(end.seq))
    assert [c.index for c in chunks] == [0, 1, 2]
    assert b"".join(c.tokens for c in chunks) == pack_tokens(ids_of(SAID))


async def test_tokens_without_text_are_chunks_too() -> None:
    chunks, end = await read(ScriptedGateway(pieces(ids_of("🙂"))), request())
    assert [c.text for c in chunks] == [""] * (len(chunks) - 1) + ["🙂"]
    assert end.usage.completion_tokens == len(chunks)


async def test_tokens_past_a_stop_string_neither_show_nor_count() -> None:
    tokens = ids_of(" brown STOP fox")
    gateway = ScriptedGateway(pieces(tokens, [len(tokens)], end=None))
    chunks, end = await read(gateway, request(stop=["STOP"], return_tokens=True))
    upto = ids_of(" brown STOP")
    assert "".join(c.text for c in chunks) == " brown " and end.finish_reason == "stop"
    assert end.usage.completion_tokens == len(upto) and chunks[-1].tokens == pack_tokens(upto)
    assert gateway.streams[0].cancelled.is_set()


async def test_what_was_held_for_a_stop_string_comes_with_the_end() -> None:
    chunks, end = await read(ScriptedGateway(pieces(ids_of(" brown ST"))), request(stop=["STOP"]))
    assert "".join(c.text for c in chunks) == " brown ST" and end.finish_reason == "length"


async def test_a_stop_string_within_min_tokens_is_text() -> None:
    tokens = ids_of(" a b a")
    completion = await text_gateway(ScriptedGateway(pieces(tokens))).complete(request(stop=[" a"], min_tokens=3))
    assert completion.text == " a b" and completion.finish_reason == "stop"


async def test_the_end_token_counts_but_does_not_show() -> None:
    got = await text_gateway(ScriptedGateway(pieces([*ids_of(SAID), EOS], end="stop"))).complete(request())
    assert got.text == SAID and got.usage.completion_tokens == len(ids_of(SAID)) + 1


async def test_an_end_may_come_alone() -> None:
    gateway = ScriptedGateway([*pieces(ids_of(SAID), end=None), Piece(5, (), (), "stop")])
    chunks, end = await read(gateway, request())
    assert "".join(c.text for c in chunks) == SAID and end.seq == len(chunks)


async def test_a_reader_who_leaves_early_cancels_the_work() -> None:
    gateway = ScriptedGateway(pieces(ids_of(SAID), end=None))
    async with aclosing(text_gateway(gateway).stream(request())) as messages:
        await anext(messages)
        assert not gateway.streams[0].cancelled.is_set()
    assert gateway.streams[0].cancelled.is_set()


async def test_a_cancelled_call_cancels_the_work() -> None:
    gateway = ScriptedGateway(pieces(ids_of(SAID), end=None))
    call = asyncio.create_task(text_gateway(gateway).complete(request()))
    await gateway.opened.wait()
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert gateway.streams[0].cancelled.is_set()


async def test_an_answer_that_nobody_read_is_cancelled_when_closed() -> None:
    gateway = ScriptedGateway()
    answer = await text_gateway(gateway).open(request())
    answer.close()
    answer.close()
    assert gateway.streams[0].cancelled.is_set()


async def test_a_failed_request_needs_no_cancel() -> None:
    gateway = ScriptedGateway([*pieces(ids_of(SAID), end=None), Unavailable("gone")])
    with pytest.raises(Unavailable):
        await text_gateway(gateway).complete(request())
    assert not gateway.streams[0].cancelled.is_set()


async def test_a_long_text_is_tokenized_as_a_short_one_is() -> None:
    gateway = ScriptedGateway(pieces(ids_of(SAID)))
    await text_gateway(gateway).complete(request(prompt="The quick brown fox. " * 200))
    assert gateway.inbounds[0].tokens == ids_of("The quick brown fox. " * 200)
