"""Our prompts' ids and answers' text are those of vLLM and transformers, for any tokens, stop strings and splits."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dopd_gateway.likely import Likely
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


def test_tokens_with_log_probabilities_have_the_names_of_vllm() -> None:
    pytest.importorskip("vllm")
    import numpy as np
    from transformers import PreTrainedTokenizerFast
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_bpe(), bos_token="<s>", eos_token="</s>")
    rng, most = random.Random(1), 3
    for _ in range(200):
        # Single bytes, pieces of characters and words.
        drawn = [rng.choice([rng.randrange(3, 400), *tiny_bpe().encode("漢🙂ä ß").ids]) for _ in range(12)]
        rows = [[token, *rng.sample(range(400), most)] for token in drawn]
        theirs = LogprobsProcessor(tokenizer, [], None, 0.0, most, None)
        theirs._update_sample_logprobs(
            LogprobsLists(np.array(rows), np.zeros((12, 1 + most), np.float32), np.ones(12, np.int64))
        )
        likely = Likely(tiny_vocabulary(), most)
        ours = [each for row in rows for each in likely.named([(row, [0.0] * (1 + most))])]
        for row, mine, their in zip(rows, ours, theirs.logprobs or [], strict=True):
            names = {token: told.decoded_token for token, told in their.items()}
            assert mine.token == names[row[0]]
            assert [(top.token_id, top.token) for top in mine.top] == [(token, names[token]) for token in row[1:]]


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


TEMPLATES = {
    "of our tiny model": (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "headers, a system message apart, and a day": (
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul 2024' %}\n"
        "{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n"
        "{{- '<|system|>' + date_string + system }}\n{%- for message in messages %}\n"
        "    {{- '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|assistant|>' }}\n{%- endif %}\n"
    ),
    "turns, json, and words for training": (
        "{%- set ns = namespace(last='') %}\n{% for message in messages %}\n"
        "  {%- if message.role == 'assistant' %}\n{% generation %}{{ message.content | tojson }}{% endgeneration %}\n"
        "  {%- elif loop.last and style is defined %}\n{{ style }}{{ message | tojson(indent=2) }}\n"
        "  {%- else %}\n{{ message.content.split('o')[-1] }}\n  {%- endif %}\n"
        "  {%- if loop.index > 3 %}{% break %}{% endif %}\n{% endfor %}{{ ns.last }}"
    ),
    "tools if there are any": "{% if tools %}T{% endif %}{{ messages | length }}{{ messages[-1].content | upper }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_chat_templates_give_what_transformers_gives(tmp_path: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    tiny_bpe().save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": template,
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(str(tmp_path)), Tokenizer.load(str(tmp_path))
    rng = random.Random(5)
    words = ["Hello <you> & me", " ", "äöü 漢字 🙂", "two\nlines\n", "{{ no }} template", ""]
    for _ in range(50):
        roles = ["system", *["user", "assistant"] * 3][rng.randrange(2) :][: rng.randrange(1, 7)]
        messages = [{"role": role, "content": "".join(rng.choices(words, k=3))} for role in roles]
        extra = rng.choice([{}, {"style": "short"}, {"date_string": "today"}])
        prompts = rng.random() < 0.7
        expected = theirs.apply_chat_template(messages, add_generation_prompt=prompts, tokenize=False, **extra)
        text = ours.chat(messages, prompts, extra, 0.0)
        assert text == expected
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)


def test_a_template_in_a_file_of_its_own_goes_first(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tiny_bpe().save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ messages[0].content }}"}]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "x"}]
    for content in (None, "F{{ messages[0].content }}"):
        if content is not None:
            (tmp_path / "chat_template.jinja").write_text(content)
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
        expected = theirs.apply_chat_template(messages, tokenize=False)
        assert Tokenizer.load(str(tmp_path)).chat(messages, False, {}, 0.0) == expected
