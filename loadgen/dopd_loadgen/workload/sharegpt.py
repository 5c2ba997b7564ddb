"""Prompts word by word from a file of conversations in ShareGPT's form.

Consumes JSON (`[{"id", "conversations": [{"from", "value"}, …]}, …]`, plain or gzip) and a count of tokens; produces
prompts with the lengths of the recorded answers. Only the first question and answer of a conversation are used.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from numpy.random import Generator

from dopd.errors import LoadError
from dopd_loadgen.workload import source
from dopd_loadgen.workload.lengths import TOKENS_LIMIT

Count = Callable[[str], int]
"""The tokens that the served model makes of a text, special ones included."""
ASKS, ANSWERS = frozenset({"human", "user"}), frozenset({"gpt", "chatgpt", "bing", "bard", "assistant"})


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from")
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Turn]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's words and length, and how long the recorded answer was."""

    text: str
    isl_tokens: int
    osl_tokens: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a file, and how many conversations gave none, by reason."""

    prompts: list[Prompt]
    left_out: dict[str, int] = field(default_factory=dict)


def read_sharegpt(
    path: Path, count: Count, rng: Generator | None = None, limit: int | None = None, max_isl: int | None = None
) -> Prompts:
    """Up to `limit` prompts, in the file's order or, with `rng`, in a random one. Only what is taken is counted.

    Raises LoadError for a conversation that is not of the form. Left out and counted: those that do not begin with a
    question and its answer, those without a token, and prompts above `max_isl` tokens.
    """
    conversations = _conversations(path)
    order = list(range(len(conversations))) if rng is None else rng.permutation(len(conversations)).tolist()
    found: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for number in order:
        if len(found) == limit:
            break
        prompt = _prompt(f"{path}, conversation {number + 1}", conversations[number], count, max_isl)
        if isinstance(prompt, str):
            left_out[prompt] += 1
        else:
            found.append(prompt)
    if not found:
        raise LoadError(str(path), f"no usable conversation of {len(conversations)}: {dict(left_out)}")
    return Prompts(found, dict(left_out))


def _conversations(path: Path) -> list[_Conversation]:
    with source.opened(path) as text:
        whole = text.read()
    if not whole.strip():
        raise LoadError(str(path), "the file is empty")
    raw = source.decoded(str(path), whole, list[msgspec.Raw], "not a JSON list of conversations")
    if not raw:
        raise LoadError(str(path), "no conversations: the list is empty")
    form = "not {id, conversations: [{from, value}, …]}"
    return [
        source.decoded(f"{path}, conversation {number}", one, _Conversation, form)
        for number, one in enumerate(raw, start=1)
    ]


def _prompt(where: str, conversation: _Conversation, count: Count, max_isl: int | None) -> Prompt | str:
    turns = conversation.conversations
    if len(turns) < 2 or turns[0].speaker not in ASKS or turns[1].speaker not in ANSWERS:
        return "does not begin with a question and its answer"
    if not turns[0].value.strip() or not turns[1].value.strip():
        return "an empty question or answer"
    isl, osl = count(turns[0].value), count(turns[1].value)
    if max(isl, osl) > TOKENS_LIMIT:
        raise LoadError(where, f"more than {TOKENS_LIMIT} tokens")
    if not isl or not osl:
        return "no tokens"
    return "prompt too long" if max_isl is not None and isl > max_isl else Prompt(turns[0].value, isl, osl)
