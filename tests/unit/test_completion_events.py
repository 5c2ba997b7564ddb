"""Reading a streamed completion: tokens and their times, with and without the server's own count, and what is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_loadgen.completion_events import DONE, Reading, Unanswered, kind_of, message_of, spread
from dopd_loadgen.model import Phase, Record


def event(text: str | None = None, count: int | None = None, finish: str | None = None, **more: Any) -> bytes:
    usage = None if count is None else {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
    choices = [] if text is None else [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]
    return json.dumps(
        {"id": "cmpl-1", "object": "text_completion", "choices": choices, "usage": usage, **more}
    ).encode()


def read(*events: bytes, osl: int, forced: bool = True) -> Record:
    """Event i comes in at second i."""
    record = Record(0, 5, osl, 0.0, forced=forced)
    reading = Reading(record)
    for at_s, data in enumerate(events):
        reading.take(data, float(at_s))
    reading.settle()
    return record


def test_with_continuous_usage_every_batch_has_its_count_also_without_text() -> None:
    record = read(event("a", 1), event("", 3), event("b", 3), event("cd", 5, "length"), event(None, 5), DONE, osl=5)
    assert (record.times_s, record.counts) == ([0.0, 1.0, 3.0], [1, 2, 2])
    assert (record.failure, record.finish_reason, record.prompt_tokens) == ("", "length", 5)
    assert record.request_id == "cmpl-1"


def test_a_last_token_that_only_the_final_usage_tells_goes_onto_the_last_batch() -> None:
    record = read(event("a", 1), event("b", 2, "stop"), event(None, 3), DONE, osl=9, forced=False)
    assert record.counts == [1, 2] and record.failure == ""


def test_without_counts_each_event_with_text_is_one_token() -> None:
    record = read(event("a"), event(""), event("b"), event("", None, "stop"), DONE, osl=9, forced=False)
    assert (record.times_s, record.counts) == ([0.0, 2.0], [1, 1])


def test_the_usage_at_the_end_spreads_the_tokens_that_had_no_event() -> None:
    record = read(event("a"), event("bc"), event("de", None, "length"), event(None, 5), DONE, osl=5)
    assert (record.times_s, record.counts) == ([0.0, 1.0, 2.0], [1, 2, 2])


def test_usage_in_the_finishing_event_alone_is_no_count_of_that_event() -> None:
    record = read(event("a"), event("bc"), event("de", 5, "length"), DONE, osl=5)
    assert record.counts == [1, 2, 2]


def test_where_nobody_counts_an_end_by_length_means_that_all_were_made() -> None:
    record = read(event("abc"), event("def", None, "length"), osl=6)
    assert record.counts == [1, 5] and record.failure == ""


def test_a_forced_answer_with_fewer_tokens_is_short_and_a_free_one_is_not() -> None:
    events = (event("a", 1), event("b", 2, "stop"), event(None, 2), DONE)
    assert read(*events, osl=3, forced=False).failure == ""
    with pytest.raises(Unanswered, match="2 of 3 tokens") as caught:
        read(*events, osl=3)
    assert caught.value.kind == "short"


def test_a_stream_without_a_finish_is_truncated_even_with_an_end_mark() -> None:
    for events in ((event("a", 1),), (event("a", 1), event(None, 1), DONE), ()):
        with pytest.raises(Unanswered) as caught:
            read(*events, osl=1)
        assert caught.value.kind == "truncated"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b'{"choices": 5}', b'{"choices": [{"text": 5}]}', b'{"id": "\xff"}']
)
def test_an_event_that_cannot_be_read_is_malformed(data: bytes) -> None:
    with pytest.raises(Unanswered) as caught:
        read(event("a", 1), data, osl=5)
    assert caught.value.kind == "malformed" and len(caught.value.detail) <= 400


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"error": {"message": "the engine died", "code": 500}}', "the engine died"),
        (b'{"object": "error", "message": "out of memory"}', "out of memory"),
        (b'{"error": "busy"}', "busy"),
        (b"{}", "{}"),
    ],
)
def test_an_error_in_the_stream_is_the_servers(data: bytes, said: str) -> None:
    with pytest.raises(Unanswered) as caught:
        read(event("a", 1), data, osl=5)
    assert (caught.value.kind, caught.value.detail) == ("server_error", said)


def test_the_timeline_of_the_last_event_is_kept() -> None:
    phases = [["queue", 1.0, 2.0, "g1"], ["prefill", 2.0, 3.0, "w1"]]
    record = read(event("a", 1, "length"), event(None, 1, timeline=phases), DONE, osl=1)
    assert record.timeline == (Phase("queue", 1.0, 2.0, "g1"), Phase("prefill", 2.0, 3.0, "w1"))


@given(st.integers(0, 500), st.integers(0, 60))
def test_a_spread_keeps_the_sum_is_even_and_leaves_one_on_the_first(total: int, events: int) -> None:
    counts = spread(total, events)
    assert len(counts) == events and (sum(counts) == total or not events)
    if events > 1 and total > 1:
        assert counts[0] == 1 and counts[-1] >= 1
        assert max(counts[1:]) - min(counts[1:]) <= 1


def test_a_status_stands_for_one_kind_of_failure() -> None:
    kinds = {200: "malformed", 302: "malformed", 400: "client_error", 404: "client_error", 429: "rejected"}
    kinds |= {500: "server_error", 502: "server_error", 503: "rejected", 504: "timeout"}
    assert {status: kind_of(status) for status in kinds} == kinds


def test_a_message_is_found_in_every_usual_shape_of_error_and_is_bounded() -> None:
    assert message_of(b'{"error": {"message": "m", "type": "t"}}') == "m"
    assert message_of(b'{"detail": "Not Found"}') == "Not Found"
    assert message_of(b"<html>") == "<html>" and message_of(b"\xff\xfe") == "\N{REPLACEMENT CHARACTER}" * 2
    assert len(message_of(json.dumps({"error": {"message": "x" * 5000}}).encode())) == 400
    assert message_of(b'{"detail": [{"loc": ["body"]}]}') == '{"detail": [{"loc": ["body"]}]}'
