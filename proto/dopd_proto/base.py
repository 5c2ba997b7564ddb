"""What all messages share: a frozen, keyword-only, tagged msgspec struct.

Token ids travel packed (`pack_tokens`), because a list of 8,000 integers costs 20x the time of 32 kB of bytes.
"""

from array import array
from collections.abc import Sequence
from typing import Literal, dataclass_transform

import msgspec

Role = Literal["prefill", "decode", "mixed"]
DrainMode = Literal["overlap", "migrate", "wait"]

PROTOCOL_VERSION = 1


# Type checkers do not see that subclasses of a frozen Struct are frozen; this also has them demand keywords.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """One message on the bus. New fields need a default; a breaking change is a new subject version."""


class Foreign(Message):
    """Bytes in a format that is not ours, for a protocol that somebody else has defined. They travel as they are."""

    payload: bytes


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32 bytes.

    Raises OverflowError or TypeError for ids outside 0..2^32-1 or not integers.
    """
    packed = array("I", tokens)
    if packed.itemsize != 4:  # pragma: no cover - every platform we run on has 4-byte unsigned ints
        raise RuntimeError("array('I') is not 4 bytes wide on this platform")
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """The inverse of `pack_tokens`. Raises ValueError when the length is not a multiple of 4."""
    return token_array(packed).tolist()


def token_array(packed: bytes) -> "array[int]":
    """The same as an array, which is made in a fraction of the time."""
    tokens = array("I")
    tokens.frombytes(packed)
    return tokens
