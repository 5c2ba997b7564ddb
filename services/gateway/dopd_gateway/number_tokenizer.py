"""A vocabulary for the emulated engine, which has none: each token id is a made-up word, so that answers are readable.

Consumes: ids or text. Produces: `NumberTokenizer`. Words and ids are one to one, so an answer can be sent back as a
prompt and gives the same ids; any other text becomes hashed ids, about as many as a real tokenizer would make.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

from dopd_gateway.chat_template import ChatTemplate
from dopd_gateway.text import Step

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou")
_DIGITS = {syllable: digit for digit, syllable in enumerate(_SYLLABLES)}
_PIECE_CHARACTERS = 4


class NumberTokenizer:
    """Ids as words, without a model. There is no end-of-sequence token: the emulated engine stops by length."""

    def __init__(self, vocab_size: int = 128_256) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids: frozenset[int] = frozenset()
        self._template = ChatTemplate(CHAT_TEMPLATE, {}, "the emulated engine")

    @property
    def chats(self) -> bool:
        return True

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [token for word in text.split() for token in self._ids(word)]

    def decode(self, tokens: Sequence[int], special: bool = True) -> str:
        return " ".join(map(word_of, tokens))

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, extra: Mapping[str, Any], now_s: float
    ) -> str:
        return self._template.text(messages, add_generation_prompt, extra, now_s)

    def name(self, token: int) -> str:
        return word_of(token)

    def stepper(self, prompt: Sequence[int]) -> Step:
        separator = " " if prompt else ""

        def step(token: int) -> str:
            nonlocal separator
            text, separator = separator + word_of(token), " "
            return text

        return step

    def _ids(self, word: str) -> list[int]:
        number = number_of(word)
        if number is not None and number < self.vocab_size:
            return [number]
        cuts = [*range(0, len(word), _PIECE_CHARACTERS), len(word)]
        return [crc32(word[a:b].encode()) % self.vocab_size for a, b in pairwise(cuts)]


def word_of(number: int) -> str:
    """The number in base 80, a syllable for each digit: 6 is "de", 1234 "gaku"."""
    word = ""
    while True:
        number, digit = divmod(number, len(_SYLLABLES))
        word = _SYLLABLES[digit] + word
        if number == 0:
            return word


def number_of(word: str) -> int | None:
    """The inverse of `word_of`; None for any other text."""
    digits = [_DIGITS.get(word[i : i + 2]) for i in range(0, len(word), 2)]
    number = 0
    for digit in digits:
        if digit is None:
            return None
        number = number * len(_SYLLABLES) + digit
    # A leading zero is another spelling, not the word of this number.
    return number if word and (len(digits) == 1 or digits[0] != 0) else None
