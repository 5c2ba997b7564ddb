"""MessagePack in and out. A payload that is not what its subject promises is a `DecodeError`, never a crash."""

import re
from typing import Protocol, TypeVar

import msgspec

from dopd_proto.base import Foreign, Message

M = TypeVar("M", bound=Message)


class Decoder(Protocol):
    """Bytes to a message."""

    def decode(self, payload: bytes, /) -> Message:
        """Raises msgspec.DecodeError."""


class _AsTheyAre:
    def decode(self, payload: bytes, /) -> Message:
        return Foreign(payload=payload)


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[tuple[type[Message], ...], Decoder] = {(Foreign,): _AsTheyAre()}


_FIELD = re.compile(r"(?:unknown|required) field `([^`]{1,100})|`\$\.(\w{1,100})")
_LONGEST = 500
"""Characters of an error's text: it may quote what came, which may be megabytes."""


class DecodeError(ValueError):
    """The bytes are no message of the expected type; the text says what was wrong and where, `param` in which field."""

    def __init__(self, text: str) -> None:
        super().__init__(text[:_LONGEST])
        named = _FIELD.search(text)
        self.param = (named[1] or named[2]) if named else None


def encode(message: Message) -> bytes:
    """The message as MessagePack, a map with its tag under `type`; `Foreign` bytes as they are."""
    return message.payload if message.__class__ is Foreign else _encoder.encode(message)


def decode(payload: bytes, types: tuple[type[M], ...]) -> M:
    """A message of one of `types`. Raises DecodeError."""
    decoder = _decoders.get(types)
    if decoder is None:
        union = types[0]
        for other in types[1:]:
            union = union | other  # type: ignore[assignment]
        decoder = _decoders[types] = msgspec.msgpack.Decoder(union)
    try:
        return decoder.decode(payload)  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from error
