"""Tokens to text: characters split over tokens, stop strings, and vocabularies."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.errors import ConfigError
from dopd_gateway.number_tokenizer import NumberTokenizer, number_of, word_of
from dopd_gateway.text import TextStream, first_match, held_length
from dopd_gateway.tokenizer import Tokenizer
from tests.text_side import BOS, EOS, ids_of, tiny_bpe, tiny_vocabulary

LETTERS = "ab"
texts = st.text(st.sampled_from("ab €🙂"), max_size=40)
token_texts = st.lists(st.text(LETTERS, max_size=3), max_size=20)
stops = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=4)


class Spelled:
    """A decoder whose token n gives the n-th text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __call__(self, token: int) -> str:
        return self.texts[token]


def split(tokens: Sequence[int], cuts: list[int]) -> list[Sequence[int]]:
    edges = sorted({0, len(tokens), *(cut % (len(tokens) + 1) for cut in cuts)})
    return [tokens[a:b] for a, b in pairwise(edges)]


def read(stream: TextStream, parts: list[Sequence[int]]) -> tuple[str, int, bool]:
    text, count = "", 0
    for part in parts:
        shown = stream.feed(part)
        text, count = text + shown.text, count + shown.tokens
        if shown.stopped:
            return text, count, True
    return text + stream.flush(), count, False


def expected(texts: Sequence[str], stop: Sequence[str], min_tokens: int) -> tuple[str, int, bool]:
    """The rule word for word: after each token past min_tokens, the match that completes first in its text."""
    said = ""
    for number, text in enumerate(texts, start=1):
        old, said = len(said), said + text
        if number > min_tokens:
            for end in range(old + 1, len(said) + 1):
                for string in stop:
                    if said[:end].endswith(string):
                        return said[: end - len(string)], number, True
    return said, len(texts), False


@given(texts, st.lists(st.integers(0, 1000), max_size=8))
def test_any_split_of_the_tokens_gives_the_same_text(text: str, cuts: list[int]) -> None:
    tokens = ids_of(text)
    stream = TextStream(tiny_vocabulary().stepper(ids_of("The")))
    assert read(stream, split(tokens, cuts)) == (text, len(tokens), False)


@given(token_texts, stops, st.integers(0, 6), st.lists(st.integers(0, 1000), max_size=8))
def test_stop_strings_follow_the_rule_for_any_split(
    texts: list[str], stop: list[str], min_tokens: int, cuts: list[int]
) -> None:
    stream = TextStream(Spelled(texts), stop, min_tokens)
    got = read(stream, split(range(len(texts)), cuts))
    assert got == expected(texts, stop, min_tokens)


@given(token_texts, stops)
def test_no_more_is_held_than_what_may_become_a_stop_string(texts: list[str], stop: list[str]) -> None:
    stream, said, shown = TextStream(Spelled(texts), stop), "", ""
    for token, text in enumerate(texts):
        said += text
        got = stream.feed([token])
        shown += got.text
        if got.stopped:
            return
        held = said.removeprefix(shown)
        assert said == shown + held
        assert held == "" or any(string.startswith(held) for string in stop)


@given(texts, st.sampled_from(["€", "🙂", "b €", "🙂🙂", "a"]))
def test_a_stop_string_of_split_characters_is_found(text: str, string: str) -> None:
    stream = TextStream(tiny_vocabulary().stepper([]), [string])
    shown, _, stopped = read(stream, [[token] for token in ids_of(text)])
    assert (shown, stopped) == (text.partition(string)[0], string in text)


def test_a_character_appears_with_its_last_byte() -> None:
    tokens = ids_of("🙂")
    assert len(tokens) > 1
    stream = TextStream(tiny_vocabulary().stepper(ids_of("so ")))
    assert [stream.feed([t]).text for t in tokens] == [""] * (len(tokens) - 1) + ["🙂"]


def test_a_character_that_the_prompt_began_is_completed_and_nothing_else_of_the_prompt_shows() -> None:
    tokens = ids_of("🙂")
    stream = TextStream(tiny_vocabulary().stepper([*ids_of("so"), *tokens[:-1]]))
    assert stream.feed([*tokens[-1:], *ids_of(" it")]).text == "🙂 it"


def test_half_a_character_at_the_end_is_dropped() -> None:
    tokens = ids_of("so🙂")
    stream = TextStream(tiny_vocabulary().stepper([]))
    assert stream.feed(tokens[:-1]).text + stream.flush() == "so"


def test_the_match_that_completes_first_wins_and_a_tie_goes_to_the_first_listed() -> None:
    assert first_match("xxabc", 0, ["abc", "ab"]) == 2
    assert first_match("xabc", 0, ["bc", "abc"]) == 2
    assert first_match("xabc", 0, ["abc", "bc"]) == 1
    assert first_match("abx", 2, ["ab"]) is None
    assert held_length("xab", ["abc", "b"]) == 2


def test_special_tokens_give_no_text() -> None:
    stream = TextStream(tiny_vocabulary().stepper([]))
    assert stream.feed([*ids_of("so"), EOS, *ids_of(" it")]).text == "so it"


def model_folder(folder: Path, bos: bool = False, **files: object) -> str:
    tiny_bpe(bos).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("add_bos_token", [None, False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_the_post_processor_alone_decides_on_the_bos(tmp_path: Path, bos: bool, add_bos_token: bool | None) -> None:
    config = {"bos_token": "<s>", "add_bos_token": add_bos_token}
    tokens = Tokenizer.load(model_folder(tmp_path, bos, tokenizer_config=config)).encode("fox")
    assert tokens == [BOS] * bos + ids_of("fox")


def test_sizes_and_ends_come_from_the_model_folder(tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path,
        config={"vocab_size": 512, "eos_token_id": EOS},
        generation_config={"eos_token_id": [EOS, 7]},
        tokenizer_config={"eos_token": {"content": "fox"}, "pad_token": "<pad>"},
    )
    found = Tokenizer.load(folder)
    assert found.vocab_size == 512
    assert found.eos_token_ids >= {EOS, 7} and len(found.eos_token_ids) <= 3


def test_a_token_that_the_config_names_is_special(tmp_path: Path) -> None:
    fox = ids_of("quick")
    plain = Tokenizer.load(model_folder(tmp_path))
    assert plain.stepper([])(fox[0]) != ""
    entry = tiny_bpe().id_to_token(fox[0])
    marked = Tokenizer.load(model_folder(tmp_path, tokenizer_config={"eos_token": entry}))
    assert marked.stepper([])(fox[0]) == "" and marked.eos_token_ids == {fox[0]}


def test_a_folder_without_a_tokenizer_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.load(str(tmp_path))


@given(st.lists(st.integers(0, 128_255), max_size=20))
def test_numbers_become_words_and_back(tokens: list[int]) -> None:
    vocabulary = NumberTokenizer()
    stream = TextStream(vocabulary.stepper([]))
    assert vocabulary.encode(stream.feed(tokens).text) == tokens


@given(st.text(max_size=60))
def test_any_text_becomes_numbers_of_the_vocabulary(text: str) -> None:
    tokens = NumberTokenizer(vocab_size=50).encode(text)
    assert all(0 <= token < 50 for token in tokens) and bool(tokens) == bool(text.split())


def test_words_are_spelled_as_documented() -> None:
    assert (word_of(6), number_of("de")) == ("de", 6)
    assert (word_of(1234), number_of("gaku")) == ("gaku", 1234)
    assert number_of("bade") is None and number_of("") is None and number_of("dex") is None
