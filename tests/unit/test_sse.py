"""Splitting server-sent events: the same events come out however the bytes were cut."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_loadgen.sse import EventSplitter


def events_of(*chunks: bytes) -> list[bytes]:
    splitter = EventSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


STREAM = (
    b'\xef\xbb\xbf: a comment\n\ndata: {"a": 1}\n\nevent: x\nid: 7\ndata:no space\ndata:  two\n\n'
    b'retry: 5\n\n:keep-alive\r\n\r\ndata: {"b":\rdata: 2}\r\rdata\ndata: \n\nnothing: x\r\ndata: [DONE]\r\n\r\n'
)
EVENTS = [b'{"a": 1}', b"no space\n two", b'{"b":\n2}', b"\n", b"[DONE]"]


def test_comments_other_fields_and_every_line_ending_are_understood() -> None:
    assert events_of(STREAM) == EVENTS


@pytest.mark.parametrize("size", range(1, 12))
def test_events_may_be_cut_anywhere(size: int) -> None:
    assert events_of(*(STREAM[i : i + size] for i in range(0, len(STREAM), size))) == EVENTS


@pytest.mark.parametrize("at", range(1, len(STREAM)))
def test_one_cut_changes_nothing_wherever_it_is(at: int) -> None:
    assert events_of(STREAM[:at], STREAM[at:]) == EVENTS


LINE = st.binary(max_size=12).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))


@given(
    st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data()
)
def test_what_was_written_is_read(events: list[list[bytes]], newline: bytes, data: st.DataObject) -> None:
    body = b"".join(b"".join(b"data: " + line + newline for line in event) + newline for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert events_of(*chunks) == [b"\n".join(event) for event in events]


def test_the_quick_way_and_the_slow_way_agree() -> None:
    """A comment in front of everything leaves only the slow way for the first chunk."""
    rng = random.Random("sse")
    for _ in range(200):
        lines = [
            rng.choice([b"data: x\n\n", b"data: [1]\n\n", b"data: a\ndata: b\n\n", b"data:y\n\n"]) for _ in range(6)
        ]
        body = b"".join(lines)
        assert events_of(body) == events_of(b": hello\n" + body)


def test_an_event_without_its_empty_line_is_unfinished() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\n") == [b"a"] and not splitter.unfinished
    assert splitter.feed(b"data: b\n") == [] and splitter.unfinished
    assert splitter.feed(b"\n") == [b"b"] and not splitter.unfinished


def test_a_carriage_return_at_a_border_is_not_a_second_line_end() -> None:
    assert events_of(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [b"a\nb"]
    assert events_of(b"data: a\r", b"", b"\ndata: b\r\n\r\n") == [b"a\nb"]
    assert events_of(b"data: a\r\n\r", b"\ndata: b\n\n") == [b"a", b"b"]
    assert events_of(b"data: a\n\r", b"data: b\n\n", b"data: c\n\n") == [b"a", b"b", b"c"]
