"""Tokens to text, as they come: pieces of a multi-byte character and possible starts of a stop string are held back.

Consumes: token ids, and a `Step` of the vocabulary that turns one more id into the text it completes.
Produces: the text that may be shown now, how many of the tokens count, and whether a stop string ended it. Pure.
The rules are vLLM's: the text that came with token k is matched once k > min_tokens, the match that completes first
wins, and usage counts the tokens up to the one that completed it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Step = Callable[[int], str]
"""One more token id in, the text that it completes out (empty in the middle of a character)."""


class Vocabulary(Protocol):
    """What the text side needs of a tokenizer. Ids are below `vocab_size`."""

    vocab_size: int
    eos_token_ids: frozenset[int]

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The text's ids; with `special` those tokens are added that the model wants around a prompt."""

    def decode(self, tokens: Sequence[int], special: bool = True) -> str:
        """The text of these ids; special tokens are text only with `special`."""

    def name(self, token: int) -> str:
        """The text of a token for itself, with the spaces that it begins with."""

    def stepper(self, prompt: Sequence[int]) -> Step:
        """A decoder of what follows the prompt; special tokens give no text."""

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, extra: Mapping[str, Any], now_s: float
    ) -> str:
        """The text that the model's chat template makes of checked messages. Raises BadRequest."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Text to show now, and how many of the tokens fed count; fewer than fed only when `stopped`."""

    text: str
    tokens: int
    stopped: bool = False


class TextStream:
    """The text of one answer."""

    def __init__(self, step: Step, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._step, self._stop, self._min_tokens = step, tuple(stop), min_tokens
        self._count = 0
        self._held = ""

    def feed(self, tokens: Sequence[int]) -> Shown:
        """Text that these tokens release. After a stop nothing more may be fed."""
        if not self._stop:
            return Shown("".join(map(self._step, tokens)), len(tokens))
        released: list[str] = []
        for number, token in enumerate(tokens, start=1):
            text, stopped = self._release(self._step(token))
            released.append(text)
            if stopped:
                return Shown("".join(released), number, stopped=True)
        return Shown("".join(released), len(tokens))

    def flush(self) -> str:
        """What was held back for a stop string that never came. Half characters are dropped, as vLLM does."""
        held, self._held = self._held, ""
        return held

    def _release(self, text: str) -> tuple[str, bool]:
        self._count += 1
        # What is held is the longest possible start of a stop string, so every match begins in it or after it.
        pending, old = self._held + text, len(self._held)
        if self._count > self._min_tokens:
            match = first_match(pending, old, self._stop)
            if match is not None:
                self._held = ""
                return pending[:match], True
        keep = held_length(pending, self._stop)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep], False


def first_match(text: str, old: int, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that completes first in `text[old:]`; on a tie the first in the list."""
    best: tuple[int, int] | None = None
    for string in stop:
        # A match inside the old text alone was let pass because of min_tokens.
        begin = text.find(string, max(0, old - len(string) + 1))
        if begin >= 0 and (best is None or begin + len(string) < best[0]):
            best = (begin + len(string), begin)
    return None if best is None else best[1]


def held_length(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the start of a stop string."""
    return max((_overlap(text, string) for string in stop), default=0)


def _overlap(text: str, string: str) -> int:
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
