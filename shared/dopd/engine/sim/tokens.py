"""Emulated tokens: each is a function of the whole prefix, so a lost or doubled one changes all that follow.

The prefix is folded into a rolling CRC-32; KV chunks are named by a chained BLAKE2 of their tokens.
"""

from array import array
from hashlib import blake2b
from zlib import crc32

from dopd_proto.request import Sampling

VOCABULARY = 32_000
FIRST_TOKEN = 3  # 0, 1, 2 are left to padding, begin and end, as in most tokenizers
_BYTES = [token.to_bytes(4, "little") for token in range(VOCABULARY)]


def prefix_state(tokens: "array[int]") -> int:
    """The rolling state after these tokens."""
    return crc32(tokens.tobytes())


def draw(state: int, nonce: int, count: int) -> tuple[list[int], int]:
    """The next `count` tokens and the state after them. `nonce` is 0 for greedy, else the seed of the draw."""
    drawn: list[int] = []
    for _ in range(count):
        mixed = ((state ^ nonce) * 0x9E3779B1) & 0xFFFFFFFF
        token = FIRST_TOKEN + (mixed >> 7) % (VOCABULARY - FIRST_TOKEN)
        drawn.append(token)
        state = crc32(_BYTES[token], state)
    return drawn, state


def logprobs(before: int, token: int, place: int, most: int) -> tuple[list[int], list[float]]:
    """Made-up log-probabilities of a token: its own, then the `most` likeliest, of which it is the first.

    A function of the token, the one before it and its place. Values are multiples of 1/64, so that float32 has them.
    """
    mixed = ((before * 0x9E3779B1) ^ (token * 0x85EBCA77) ^ place) & 0xFFFFFFFF
    own, others = -(mixed % 64) / 64, VOCABULARY - FIRST_TOKEN
    ids = [FIRST_TOKEN + (token - FIRST_TOKEN + rank * 101) % others for rank in range(most)]
    return [token, *ids], [own, *(own - rank for rank in range(most))]


def weighs(sampling: Sampling) -> bool:
    """Whether some tokens are to be likelier than others, which a function of the prefix cannot do."""
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
    return bool(penalties or sampling.logit_bias or sampling.json_schema)


def next_key(previous: bytes, chunk: "array[int]") -> bytes:
    """Name of the KV of `chunk` behind the prefix that `previous` names."""
    return blake2b(previous + chunk.tobytes(), digest_size=8).digest()


def chunk_keys(tokens: "array[int]", chunk_tokens: int) -> list[bytes]:
    """Names of all whole chunks of a prefix."""
    keys: list[bytes] = []
    previous = b""
    for start in range(0, len(tokens) - chunk_tokens + 1, chunk_tokens):
        previous = next_key(previous, tokens[start : start + chunk_tokens])
        keys.append(previous)
    return keys
