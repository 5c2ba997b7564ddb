"""Which engine made which token: emulated tokens that are drawn by chance depend on the engine's draw for the job.

Consumes a prompt and its output at a temperature above 0; produces the stretches that one draw explains. The first
token of an attempt comes from a prefill worker, with a draw of its own; the rest from a decode worker.
"""

from array import array
from collections.abc import Iterator
from zlib import crc32

from dopd.engine.sim.tokens import FIRST_TOKEN, VOCABULARY, draw, prefix_state

_MASK = 0xFFFFFFFF
_FACTOR = 0x9E3779B1
_INVERSE = pow(_FACTOR, -1, 1 << 32)
_SPAN = VOCABULARY - FIRST_TOKEN
CERTAIN = 4  # so many tokens leave no draw by accident


def stretches(prompt: list[int], tokens: list[int]) -> list[tuple[int, int]]:
    """(first, count) of each stretch after a token of a prefill worker; tails too short to tell are left out."""
    found = []
    at = 1
    while at + CERTAIN <= len(tokens):
        count = _explained(prompt + tokens[:at], tokens[at:])
        if count:
            found.append((at, count))
        # The token after the stretch is the prefill worker's of the next attempt.
        at += count + 1
    return found


def _explained(prefix: list[int], tokens: list[int]) -> int:
    """How many of the tokens the draw explains that explains the first `CERTAIN`; 0 when there is none."""
    first = prefix_state(array("I", prefix))
    second = crc32(tokens[0].to_bytes(4, "little"), first)
    for nonce in _draws(first, tokens[0]):
        # The second token alone leaves one in 32,000.
        if ((((second ^ nonce) * _FACTOR) & _MASK) >> 7) % _SPAN != tokens[1] - FIRST_TOKEN:
            continue
        if draw(first, nonce, CERTAIN)[0] == tokens[:CERTAIN]:
            made = draw(first, nonce, len(tokens))[0]
            return next((i for i, (a, b) in enumerate(zip(made, tokens, strict=True)) if a != b), len(tokens))
    return 0


def _draws(state: int, token: int) -> Iterator[int]:
    """All draws that make this token first: the hash is undone, for each value that it may have had."""
    for high in range(token - FIRST_TOKEN, 1 << 25, _SPAN):
        # The next value of the low bits adds one inverse.
        value = ((high << 7) * _INVERSE) & _MASK
        for _ in range(128):
            yield value ^ state
            value = (value + _INVERSE) & _MASK
