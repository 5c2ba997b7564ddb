"""Our prompts' ids and answers' text are those of vLLM and transformers, for any tokens, stop strings and splits."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dopd_gateway.text import TextStream
from dopd_gateway.tokenizer import Tokenizer
from tests.text_side import TEXT, tiny_bpe, tiny_vocabulary

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

Case = tuple[list[int], list[Sequence[int]], list[str], int]


def a_case(rng: random.Random) -> Case:
    """A prompt, parts of an answer, stop strings cut from its text, and min_tokens."""
    likely = tiny_bpe().encode(TEXT).ids if rng.random() < 0.5 else list(range(tiny_bpe().get_vocab_size()))
    prompt, answer = ([rng.choice(likely) for _ in range(rng.randrange(1, 40))] for _ in range(2))
    text = tiny_bpe().decode(answer)
    begins = [rng.randrange(len(text)) for _ in range(rng.randrange(3) if text else 0)]
    stop = [text[begin : begin + rng.randrange(1, 5)] for begin in begins]
    parts, rest = [], answer
    while rest:
        size = rng.randrange(1, 5)
        parts, rest = [*parts, rest[:size]], rest[size:]
    return prompt, parts, stop, rng.choice([0, 0, 3, 10])


def of_ours(case: Case) -> tuple[str, int]:
    prompt, parts, stop, min_tokens = case
    stream = TextStream(tiny_vocabulary().stepper(prompt), stop, min_tokens)
    text, count = "", 0
    for part in parts:
        shown = stream.feed(part)
        text, count = text + shown.text, count + shown.tokens
        if shown.stopped:
            return text, count
    return text + stream.flush(), count


def of_vllm(case: Case, tokenizer: Any) -> tuple[str, int]:
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    prompt, parts, stop, min_tokens = case
    params = SamplingParams(stop=stop or None, min_tokens=min_tokens, max_tokens=100)
    asked: Any = SimpleNamespace(request_id="r", prompt_token_ids=prompt, sampling_params=params)
    detokenizer = FastIncrementalDetokenizer(tokenizer, asked)
    for part in parts:
        if detokenizer.update(list(part), False) is not None:
            break
    return detokenizer.get_next_output_text(finished=True, delta=False), detokenizer.num_output_tokens()


def test_text_and_token_counts_are_those_of_vllm() -> None:
    pytest.importorskip("vllm")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_bpe(), bos_token="<s>", eos_token="</s>")
    rng, compared = random.Random(0), 0
    while compared < 1000:
        case = a_case(rng)
        # vLLM gives a prompt that ends inside a character back as output; we do not.
        if not tiny_bpe().decode(case[0]).endswith("\ufffd"):
            compared += 1
            assert of_ours(case) == of_vllm(case, tokenizer), case


@pytest.mark.parametrize("add_bos_token", [None, False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2TokenizerFast", "Qwen2TokenizerFast"])
def test_prompts_have_the_ids_that_transformers_gives(
    tmp_path: Path, kind: str, bos: bool, add_bos_token: bool | None
) -> None:
    transformers = pytest.importorskip("transformers")
    tiny_bpe(bos).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos_token}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = Tokenizer.load(str(tmp_path))
    for text in (TEXT, "</s> in the text", " quick", "", "<pad>"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=True), text
