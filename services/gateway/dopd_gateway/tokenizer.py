"""The model's own vocabulary, through the `tokenizers` library, and only here.

Consumes: a model folder with `tokenizer.json`, or a hub id (from the hub's local cache where it is there).
Produces: `Tokenizer`, whose ids and text are those of vLLM's `/v1/completions`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers.decoders import DecodeStream

from dopd.errors import BadRequest, ConfigError
from dopd_gateway.chat_template import ChatTemplate
from dopd_gateway.text import Step

_TEMPLATE = "chat_template.jinja"
_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", _TEMPLATE)
_SPACE = "\u2581"  # SentencePiece's
# The first output token may complete a character of the prompt; decoding all of a long prompt for that costs 10 ms.
_CONTEXT_TOKENS = 16


class Tokenizer:
    """A `Vocabulary` from `tokenizer.json`.

    Whether a BOS is put in front is the file's post-processor's choice alone: transformers 5 ignores `add_bos_token`
    of `tokenizer_config.json` where a `tokenizer.json` is present, and vLLM encodes prompts with it. (For some classes,
    Llama's among them, transformers builds the steps before and after anew; their own files have the same ones.)
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        vocab_size: int = 0,
        eos_token_ids: Sequence[int] = (),
        template: ChatTemplate | None = None,
    ) -> None:
        # A truncation or padding length baked into the file is for training.
        inner.no_truncation()
        inner.no_padding()
        self._inner, self._template = inner, template
        # Models are often padded to more rows than the tokenizer has entries.
        self.vocab_size = max(vocab_size, inner.get_vocab_size())
        self.eos_token_ids = frozenset(eos_token_ids)

    @classmethod
    def load(cls, model: str) -> "Tokenizer":
        """Raises ConfigError when there is no usable tokenizer."""
        folder = Path(model) if Path(model).is_dir() else _hub_folder(model)
        try:
            inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(model, "tokenizer.json", f"{error}; give a model with a fast tokenizer") from error
        named, settings = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
        _mark_special(inner, named)
        sizes = [settings.get("vocab_size"), _table(settings.get("text_config")).get("vocab_size")]
        eos = [*_eos_ids(settings), *_eos_ids(_json(folder / "generation_config.json")), *_named_eos(inner, named)]
        size = max((size for size in sizes if isinstance(size, int)), default=0)
        return cls(inner, size, eos, _template_of(folder, named))

    @property
    def chats(self) -> bool:
        return self._template is not None

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self._inner.encode(text, add_special_tokens=special).ids

    def decode(self, tokens: Sequence[int], special: bool = True) -> str:
        return self._inner.decode(tokens, skip_special_tokens=not special)

    def name(self, token: int) -> str:
        text = self._inner.decode((token,), skip_special_tokens=False)
        # Decoding takes the space off a word that begins a text.
        raw = self._inner.id_to_token(token) or ""
        spaces = len(raw) - len(raw.lstrip(_SPACE))
        return " " * spaces + text.lstrip(" ") if spaces else text

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, extra: Mapping[str, Any], now_s: float
    ) -> str:
        if self._template is None:
            raise BadRequest("the model has no chat template; use completions", "messages")
        return self._template.text(messages, add_generation_prompt, extra, now_s)

    def stepper(self, prompt: Sequence[int]) -> Step:
        stream = DecodeStream(skip_special_tokens=True)

        def step(token: int) -> str:
            nonlocal stream
            try:
                return stream.step(self._inner, token) or ""
            except Exception as error:
                if not str(error).startswith("Invalid prefix"):
                    raise
            # With byte fallback an invalid byte changes how those before it decode. vLLM begins anew, so do we.
            stream = DecodeStream(skip_special_tokens=True)
            return stream.step(self._inner, token) or ""

        # Not `DecodeStream(ids=…)`: where the prompt ends inside a character, that gives the prompt back as output.
        for token in prompt[-_CONTEXT_TOKENS:]:
            step(token)
        return step


def _hub_folder(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except Exception as error:
        fix = f"neither a folder nor a model of the hub or its local cache ({error})"
        raise ConfigError("engine.model", model, fix) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(str(path), "file", f"cannot be used: {error}") from error


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named_tokens(named: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """`"eos_token": "</s>"`, or the same as a table with flags."""
    for key, value in named.items():
        content = _table(value).get("content", value)
        if key.endswith("_token") and isinstance(content, str):
            yield key, content


def _template_of(folder: Path, named: dict[str, Any]) -> ChatTemplate | None:
    """A file of its own goes before the config's entry, where several have names; there "default" is meant."""
    file, entry = folder / _TEMPLATE, named.get("chat_template")
    if isinstance(entry, list):
        entry = {each.get("name"): each.get("template") for each in map(_table, entry)}.get("default")
    if file.is_file():
        try:
            entry = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(file), "file", f"cannot be used: {error}") from error
    return ChatTemplate(entry, dict(_named_tokens(named)), str(folder)) if isinstance(entry, str) else None


def _mark_special(inner: tokenizers.Tokenizer, named: dict[str, Any]) -> None:
    """Tokens that the config names (bos, eos, pad) are special, also where `tokenizer.json` has them as plain ones."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    tokens = [token for _, token in _named_tokens(named)]
    inner.add_special_tokens([t for t in tokens if t not in known and inner.token_to_id(t) is not None])


def _eos_ids(settings: dict[str, Any]) -> list[int]:
    ids = settings.get("eos_token_id")
    return [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]


def _named_eos(inner: tokenizers.Tokenizer, named: dict[str, Any]) -> list[int]:
    content = _table(named.get("eos_token")).get("content", named.get("eos_token"))
    found = inner.token_to_id(content) if isinstance(content, str) else None
    return [] if found is None else [found]
