"""Prompts have exactly the length that is planned; they share what is meant to be shared and nothing else."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.errors import LoadError
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_gateway.text import Vocabulary
from dopd_gateway.tokenizer import Tokenizer
from dopd_loadgen.model import Planned
from dopd_loadgen.prompts import text_prompt, token_prompt
from dopd_loadgen.workload import WorkloadSpec, plan
from tests.text_side import tiny_bpe

VOCABULARIES: dict[str, Vocabulary] = {
    "byte-level": Tokenizer(tiny_bpe()),
    "byte-level with BOS": Tokenizer(tiny_bpe(True)),
    "emulated": NumberTokenizer(),
}


def shared(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


plans = st.builds(
    Planned,
    index=st.integers(0, 10**6),
    at_s=st.just(0.0),
    isl_tokens=st.integers(1, 3000),
    osl_tokens=st.just(1),
    blocks=st.lists(st.integers(0, 2**62), max_size=6).map(tuple),
    block_tokens=st.sampled_from([16, 512]),
)


@given(plans, st.integers(-5, 2**40), st.integers(0, 1000), st.integers(2, 200_000))
def test_ids_are_as_many_as_planned_within_the_range_and_the_same_again(
    planned: Planned, seed: int, low: int, size: int
) -> None:
    ids = token_prompt(planned, seed, low, low + size)
    assert len(ids) == planned.isl_tokens
    assert all(type(token) is int and low <= token < low + size for token in ids)
    assert token_prompt(planned, seed, low, low + size) == ids


def test_equal_blocks_are_equal_text_and_all_else_differs() -> None:
    both, other = (7, 8, 9), (7, 8, 5)
    a = token_prompt(Planned(0, 0.0, 2000, 1, blocks=both), 0, 0, 50_000)
    b = token_prompt(Planned(1, 0.0, 1800, 1, blocks=both), 0, 0, 50_000)
    c = token_prompt(Planned(2, 0.0, 2000, 1, blocks=other), 0, 0, 50_000)
    assert shared(a, b) == 3 * 512
    assert shared(a, c) == 2 * 512
    # A block that is cut by the prompt's end is the beginning of the whole one.
    d = token_prompt(Planned(3, 0.0, 600, 1, blocks=(7, 8)), 0, 0, 50_000)
    assert a[:600] == d
    assert token_prompt(Planned(0, 0.0, 2000, 1, blocks=both), 1, 0, 50_000)[:512] != a[:512]


@pytest.mark.parametrize("size", [1000, 32_000])
def test_no_two_prompts_without_blocks_begin_with_the_same_token(size: int) -> None:
    prompts = [token_prompt(Planned(n, 0.0, 40, 1), 5, 0, size) for n in range(1000)]
    assert len({ids[0] for ids in prompts}) == 1000


def test_more_prompts_than_tokens_differ_in_their_first_few() -> None:
    prompts = [token_prompt(Planned(n, 0.0, 40, 1), 5, 0, 50) for n in range(6000)]
    # 50⁵ is the first power above the most requests that a plan may have.
    assert len({tuple(ids[:5]) for ids in prompts}) == 6000
    assert len({tuple(ids[5:]) for ids in prompts}) == 6000


def test_the_own_part_behind_shared_blocks_differs_from_its_first_token_on() -> None:
    prompts = [token_prompt(Planned(n, 0.0, 520, 1, blocks=(1,)), 0, 0, 1000) for n in range(500)]
    assert len({tuple(ids[:512]) for ids in prompts}) == 1
    assert len({ids[512] for ids in prompts}) == 500


def test_tokens_are_spread_evenly_over_the_range() -> None:
    ids = token_prompt(Planned(3, 0.0, 100_000, 1, blocks=tuple(range(100))), 0, 0, 10)
    for token in range(10):
        assert ids.count(token) == pytest.approx(10_000, abs=5 * 95)
    assert sum(a == b for a, b in pairwise(ids)) == pytest.approx(10_000, abs=5 * 95)


@pytest.mark.parametrize(("low", "high"), [(5, 5), (5, 6), (9, 2), (-1, 100)])
def test_a_range_without_a_choice_is_refused(low: int, high: int) -> None:
    with pytest.raises(LoadError, match="two or more to choose from"):
        token_prompt(Planned(0, 0.0, 5, 1), 0, low, high)


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("isl", [3, 4, 17, 512, 3000])
def test_a_text_has_exactly_the_tokens_that_the_server_counts(name: str, isl: int) -> None:
    vocabulary = VOCABULARIES[name]
    texts = [text_prompt(Planned(n, 0.0, isl, 1), 3, vocabulary) for n in range(5)]
    assert [len(vocabulary.encode(text)) for text in texts] == [isl] * 5
    assert len(set(texts)) == 5
    assert texts == [text_prompt(Planned(n, 0.0, isl, 1), 3, vocabulary) for n in range(5)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_share_the_tokens_of_equal_blocks(name: str) -> None:
    vocabulary = VOCABULARIES[name]
    a, b, c = (
        vocabulary.encode(text_prompt(Planned(n, 0.0, 100, 1, blocks=ids, block_tokens=16), 0, vocabulary))
        for n, ids in enumerate([(1, 2, 3), (1, 2, 3), (1, 2, 4)])
    )
    begin = len(vocabulary.encode(""))
    assert shared(a, b) == begin + 48
    # Words of a small vocabulary may agree by chance at the border.
    assert begin + 32 <= shared(a, c) <= begin + 35


def test_a_given_text_is_sent_word_by_word() -> None:
    assert text_prompt(Planned(0, 0.0, 3, 1, text="as it is"), 0, NumberTokenizer()) == "as it is"


def test_a_length_that_special_tokens_alone_exceed_is_refused() -> None:
    with pytest.raises(LoadError, match="request 4: no text of exactly 1 tokens"):
        text_prompt(Planned(4, 0.0, 1, 1), 0, VOCABULARIES["byte-level with BOS"])


class Letters:
    """A vocabulary without words: every id is one letter."""

    vocab_size = 26
    eos_token_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 26 for letter in text]

    def stepper(self, prompt: object) -> object:
        return lambda token: chr(97 + token)


class Shifty(NumberTokenizer):
    """Its lengths jump: no text of an odd number of tokens exists."""

    def encode(self, text: str) -> list[int]:
        ids = super().encode(text)
        return ids if len(ids) % 2 == 0 or len(ids) <= 3 else [*ids, 0]


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(LoadError, match="--tokenizer: only 0 words of one token"):
        text_prompt(Planned(0, 0.0, 5, 1), 0, Letters())  # type: ignore[arg-type]  # half a vocabulary is the point


def test_a_length_that_no_text_has_is_refused() -> None:
    vocabulary = Shifty()
    assert len(vocabulary.encode(text_prompt(Planned(0, 0.0, 50, 1), 0, vocabulary))) == 50
    with pytest.raises(LoadError, match="no text of exactly 51 tokens"):
        text_prompt(Planned(0, 0.0, 51, 1), 0, vocabulary)


def test_prompts_of_a_preset_repeat_as_many_tokens_as_its_blocks_say() -> None:
    planned = plan(WorkloadSpec("mooncake-like", num_prompts=60, max_isl=6000))
    seen: set[tuple[int, ...]] = set()
    whole, repeated = 0, 0
    for one in planned:
        ids = token_prompt(one, 0, 0, 100_000)
        for start in range(0, len(ids) - 511, 512):
            block = tuple(ids[: start + 512])
            whole, repeated = whole + 1, repeated + (block in seen)
            seen.add(block)
    full = [one.blocks[: one.isl_tokens // 512] for one in planned]
    assert whole == sum(map(len, full))
    assert repeated == whole - len({ids[: n + 1] for ids in full for n in range(len(ids))})
    assert repeated > 30


@pytest.mark.vllm
@pytest.mark.slow
def test_texts_for_the_tiny_model_have_the_length_that_its_tokenizer_counts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from dopd.engine.vllm.tiny_model import ensure_tiny_model

    vocabulary = Tokenizer.load(str(ensure_tiny_model(tmp_path / "tiny")))
    for isl in (2, 33, 1000, 8000):
        assert len(vocabulary.encode(text_prompt(Planned(isl, 0.0, isl, 1), 0, vocabulary))) == isl
