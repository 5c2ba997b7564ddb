"""A tiny random Llama with a tokenizer of its own, for tests and machines without a GPU or a network.

Consumes `corpus.txt` beside this file and a seed; produces a model folder as from the Hugging Face hub: 2.9 M
parameters, 4 KiB of KV per token in fp32, byte-level BPE with a BOS rule and a chat template. The same seed gives the
same bytes.

    python -m dopd.engine.vllm.tiny_model FOLDER
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus.txt")
VOCABULARY = 1024
MAX_LENGTH = 8192
BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def ensure_tiny_model(folder: Path, seed: int = 0) -> Path:
    """The model in `folder`, made if it is not there. Several processes may ask at once."""
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_tokenizer(draft)
        _write_weights(draft, seed)
        _make_readable(draft)
        draft.rename(folder)
    except OSError:
        # Somebody else was faster: a rename onto a filled folder fails.
        if not (folder / "config.json").exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _make_readable(folder: Path) -> None:
    # Temporary folders and safetensors files are born private; other containers' users read the model too.
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _write_tokenizer(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train(CORPUS.read_text(encoding="utf-8")), pad_token="<pad>", bos_token=BOS, eos_token=EOS
    )
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.chat_template = CHAT_TEMPLATE
    # In tokenizer_config.json, where also tools without transformers look for it.
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)


def _train(text: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.splitlines(keepends=True), trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return bpe


def _write_weights(folder: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        # With the usual 0.02 greedy output is almost constant, and a test of equality proves little.
        initializer_range=0.2,
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(str(folder), safe_serialization=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dopd.engine.vllm.tiny_model FOLDER")
    print(ensure_tiny_model(Path(sys.argv[1])))
