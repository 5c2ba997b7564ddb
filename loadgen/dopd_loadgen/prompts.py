"""The prompts of planned requests, as token ids or as text of the served model's vocabulary.

Consumes a `Planned` and a seed; produces a prompt of exactly `isl_tokens` tokens. Blocks of equal ids are equal in
every prompt of the seed. What follows them, and all of a prompt without blocks, begins with tokens that no other
request begins with, so that a prefix cache finds only what was meant to be shared.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd_gateway.text import Vocabulary
from dopd_loadgen.model import Planned
from dopd_loadgen.workload.arrivals import REQUESTS_LIMIT
from dopd_loadgen.workload.chance import generator

Words = NDArray[np.uint64]
_WORDS, _FEWEST_WORDS = 4096, 16
_TRIES = 8


def token_prompt(planned: Planned, seed: int, low: int, high: int) -> list[int]:
    """`isl_tokens` ids in [low, high). A prompt's own part starts with its index in base high - low.

    A `text` is not looked at: only its length counts here. Raises LoadError for an empty range.
    """
    span = high - low
    if span < 2 or low < 0:
        raise LoadError("prompt", f"token ids from [{low}, {high}): needs two or more to choose from")
    size, isl = planned.block_tokens, planned.isl_tokens
    shared = min(len(planned.blocks) * size, isl)
    # One counter per token, hashed: no generator has to be set up for each of the many blocks.
    counters = np.empty(isl, np.uint64)
    blocks = _mixed(np.array(planned.blocks[: -(-shared // size)], np.uint64) + _salt(seed, "blocks"))
    counters[:shared] = (blocks[:, None] + np.arange(size, dtype=np.uint64)).ravel()[:shared]
    own = _mixed(np.array([planned.index], np.uint64) + _salt(seed, "own"))
    np.add(own, np.arange(isl - shared, dtype=np.uint64), out=counters[shared:])
    tokens = _mixed(counters)
    tokens %= np.uint64(span)
    first = _digits(planned.index + int(_salt(seed, "first")) % span, span)[: isl - shared]
    tokens[shared : shared + len(first)] = first
    tokens += np.uint64(low)
    ids: list[int] = tokens.tolist()
    return ids


def text_prompt(planned: Planned, seed: int, tokenizer: Vocabulary) -> str:
    """A text that the tokenizer encodes to exactly `isl_tokens` tokens, special ones such as BOS included.

    It is made of words of one token each. A `text` that was given is returned as it is. Raises LoadError when the
    tokenizer has too few such words, or when no text of that length was found.
    """
    if planned.text:
        return planned.text
    words = _words(tokenizer)  # type: ignore[arg-type]  # a protocol does not say it, but every object has a hash
    wanted, count = planned.isl_tokens, planned.isl_tokens - len(tokenizer.encode(""))
    for _ in range(_TRIES):
        if count < 1:
            break
        chosen = token_prompt(replace(planned, isl_tokens=count), seed, 0, len(words))
        text = "".join(words[number] for number in chosen)
        found = len(tokenizer.encode(text))
        if found == wanted:
            return text
        count += wanted - found
    raise LoadError(f"request {planned.index}", f"no text of exactly {wanted} tokens was found for this tokenizer")


@lru_cache(maxsize=4)
def _words(tokenizer: Vocabulary) -> Sequence[str]:
    """Words with a space in front that stay one token each wherever they stand, as many as 4096."""
    begin = tokenizer.encode("a")
    plain, several = len(tokenizer.encode("")), 3
    found: list[str] = []
    for token in generator(0, "words").permutation(tokenizer.vocab_size).tolist():
        word = tokenizer.stepper(begin)(token)
        if word[:1] != " " or not word[1:].isalpha() or not word.isascii():
            continue
        if len(tokenizer.encode(word * several)) - plain == several:
            found.append(word)
            if len(found) == _WORDS:
                break
    if len(found) < _FEWEST_WORDS:
        raise LoadError("--tokenizer", f"only {len(found)} words of one token: no text of an exact length can be made")
    return tuple(found)


@cache
def _salt(seed: int, name: str) -> np.uint64:
    return np.uint64(generator(seed, name).integers(1 << 63))


def _digits(number: int, base: int) -> list[int]:
    """Least digit first, so that prompts one after the other differ in their first token; as many for all requests."""
    digits: list[int] = []
    while number or base ** len(digits) < REQUESTS_LIMIT:
        number, digit = divmod(number, base)
        digits.append(digit)
    return digits


def _mixed(z: Words) -> Words:
    """splitmix64's finalizer (Steele et al. 2014), in place: without new arrays it takes a third of the time."""
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
