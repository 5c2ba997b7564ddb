"""The bytes of messages: golden ones stay readable, what is unknown is tolerated, garbage is a DecodeError."""

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_proto import generate
from dopd_proto.base import Message, pack_tokens, unpack_tokens
from dopd_proto.codec import DecodeError, decode, encode
from dopd_proto.examples import all_messages, example
from dopd_proto.subjects import SUBJECTS

ROOT = Path(__file__).resolve().parents[2]
GOLDEN: dict[str, str] = json.loads((ROOT / generate.GOLDEN).read_text())
MESSAGES = all_messages()
PUBLIC = {"Generate", "Chat", "ModelsRequest", "RolesRequest", "DecisionsRequest"}

each_message = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)


@each_message
def test_golden_bytes_are_read_as_the_example_and_written_again_identically(kind: type[Message]) -> None:
    payload = bytes.fromhex(GOLDEN[kind.__name__])
    message = decode(payload, (kind,))
    assert message == example(kind)
    assert encode(message) == payload


@each_message
def test_an_example_sets_every_field_so_that_golden_bytes_cover_all(kind: type[Message]) -> None:
    written = msgspec.msgpack.decode(bytes.fromhex(GOLDEN[kind.__name__]))
    assert set(written) == {"type", *kind.__struct_encode_fields__}


@each_message
def test_fields_of_a_newer_sender_are_tolerated_inside_and_refused_from_the_public(kind: type[Message]) -> None:
    fields = msgspec.msgpack.decode(bytes.fromhex(GOLDEN[kind.__name__]))
    newer = msgspec.msgpack.encode({**fields, "field_of_tomorrow": [1, {"a": 2}]})
    if kind.__name__ in PUBLIC:
        with pytest.raises(DecodeError, match="field_of_tomorrow"):
            decode(newer, (kind,))
    else:
        assert decode(newer, (kind,)) == example(kind)


@each_message
def test_a_message_of_an_older_sender_without_the_optional_fields_is_read(kind: type[Message]) -> None:
    fields = msgspec.msgpack.decode(bytes.fromhex(GOLDEN[kind.__name__]))
    optional = {f.encode_name for f in msgspec.structs.fields(kind) if not f.required}
    older = msgspec.msgpack.encode({name: value for name, value in fields.items() if name not in optional})
    assert isinstance(decode(older, (kind,)), kind)


@each_message
def test_every_part_of_a_message_that_was_cut_off_is_a_decode_error(kind: type[Message]) -> None:
    payload = bytes.fromhex(GOLDEN[kind.__name__])
    for length in range(len(payload)):
        with pytest.raises(DecodeError):
            decode(payload[:length], (kind,))


@given(st.binary(max_size=200), st.sampled_from(MESSAGES))
def test_any_bytes_are_a_message_or_a_decode_error(payload: bytes, kind: type[Message]) -> None:
    with contextlib.suppress(DecodeError):
        assert isinstance(decode(payload, (kind,)), kind)


@given(st.data(), st.sampled_from(MESSAGES))
def test_a_changed_byte_is_a_message_or_a_decode_error(data: st.DataObject, kind: type[Message]) -> None:
    payload = bytearray.fromhex(GOLDEN[kind.__name__])
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        assert isinstance(decode(bytes(payload), (kind,)), kind)


def test_a_message_of_another_type_is_a_decode_error_that_names_it() -> None:
    for kind, other in zip(MESSAGES, MESSAGES[1:] + MESSAGES[:1], strict=True):
        with pytest.raises(DecodeError, match=other.__name__):
            decode(encode(example(other)), (kind,))


def test_deeply_nested_garbage_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        decode(b"\x91" * 100_000, (MESSAGES[0],))


def test_every_subject_carries_messages_that_have_golden_bytes() -> None:
    assert {kind.__name__ for subject in SUBJECTS for kind in subject.types} <= set(GOLDEN)
    assert len({subject.template for subject in SUBJECTS}) == len(SUBJECTS)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_token_ids_come_back_from_their_packed_form(tokens: list[int]) -> None:
    packed = pack_tokens(tokens)
    assert len(packed) == 4 * len(tokens)
    assert unpack_tokens(packed) == tokens
    assert packed == b"".join(token.to_bytes(4, "little") for token in tokens)


def test_generated_files_are_up_to_date() -> None:
    assert generate.differences() == [], "run `make gen`"


def test_the_check_names_files_that_are_missing_changed_or_left_over(tmp_path: Path) -> None:
    generate.write(tmp_path)
    assert generate.differences(tmp_path) == []
    (tmp_path / "proto/README.md").write_text("mine")
    (tmp_path / "proto/schema/Abort.json").unlink()
    (tmp_path / "proto/schema/Gone.json").write_text("{}")
    assert generate.differences(tmp_path) == [
        "proto/README.md: out of date",
        "proto/schema/Abort.json: missing",
        "proto/schema/Gone.json: no message has this name",
    ]
    generate.write(tmp_path)
    assert generate.differences(tmp_path) == []
