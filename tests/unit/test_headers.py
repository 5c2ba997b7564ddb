"""What headers add to a request, and what the answer's headers are."""

from typing import Any

import pytest

from dopd.errors import BadRequest
from dopd_gateway.headers import answer_headers, key_of, with_headers
from dopd_proto.asked import Chat, Generate

TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def asked(**fields: Any) -> Generate:
    return Generate(model="m", prompt="p", **fields)


def test_headers_give_deadline_targets_priority_and_trace() -> None:
    headers = {
        "x-request-timeout-ms": "1500", "x-slo-ttft-ms": "200", "x-slo-tpot-ms": "12.5", "x-priority": "-3",
        "x-dopd-timeline": "1", "traceparent": TRACEPARENT,
    }  # fmt: skip
    got = with_headers(asked(), headers)
    assert (got.timeout_s, got.slo_ttft_s, got.slo_tpot_s, got.priority) == (1.5, 0.2, 0.0125, -3)
    assert got.timeline and got.traceparent == TRACEPARENT


def test_a_field_of_the_body_goes_before_a_header() -> None:
    body = asked(timeout_s=5.0, slo_ttft_s=1.0, priority=2, traceparent="mine")
    headers = {"x-request-timeout-ms": "1", "x-slo-ttft-ms": "1", "x-priority": "9", "traceparent": TRACEPARENT}
    assert with_headers(body, headers) == body


def test_without_headers_the_request_is_the_same_object() -> None:
    chat = Chat(model="m", messages=[])
    assert with_headers(chat, {"accept": "*/*"}) is chat


@pytest.mark.parametrize("header", ["x-request-timeout-ms", "x-slo-ttft-ms", "x-slo-tpot-ms"])
@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e999"])
def test_a_time_that_is_none_is_refused_by_the_headers_name(header: str, value: str) -> None:
    with pytest.raises(BadRequest, match=header) as caught:
        with_headers(asked(), {header: value})
    assert caught.value.param == header


@pytest.mark.parametrize("value", ["", "high", "1.5", "9" * 30, "１"])
def test_a_priority_that_is_no_whole_number_is_refused(value: str) -> None:
    with pytest.raises(BadRequest, match="x-priority"):
        with_headers(asked(), {"x-priority": value})


@pytest.mark.parametrize(
    ("said", "key"), [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("Bearer", ""), ("", "")]
)
def test_the_key_is_that_of_the_bearer(said: str, key: str) -> None:
    assert key_of({"authorization": said} if said else {}) == key


def test_the_answer_has_the_callers_request_id_and_the_trace_id() -> None:
    got = answer_headers("ours", {"x-request-id": "theirs-1", "traceparent": TRACEPARENT})
    assert got == {"x-request-id": "theirs-1", "x-trace-id": "ab" * 16}


@pytest.mark.parametrize("theirs", ["", "a b", "ä", "x" * 129, "a\r\nset-cookie: b"])
def test_a_request_id_that_is_no_word_is_not_repeated(theirs: str) -> None:
    assert answer_headers("ours", {"x-request-id": theirs, "traceparent": "junk"}) == {"x-request-id": "ours"}
