"""What a request must keep to, before anything is queued for it. Pure.

Consumes: `Generate` or `Chat` and, once tokenized, its prompt. Produces: `Sampling`, or a BadRequest or UnknownModel
that names the field and the numbers.
"""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from dopd.errors import BadRequest, Unavailable, UnknownModel
from dopd_gateway.limits import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_SCHEMA_CHARACTERS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    RANGES,
)
from dopd_proto.asked import Asked, Chat, Feature, Generate
from dopd_proto.request import Sampling

COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that names none, as OpenAI has it."""


def check_fields(request: Asked, model: str) -> None:
    """All that can be said without the prompt's tokens and without the engine."""
    if request.model != model:
        raise UnknownModel(
            f"the model {request.model[:200]!r} does not exist here; this gateway serves {model!r}", "model"
        )
    for field, allowed in RANGES.items():
        value = getattr(request, field)
        if value is not None and not allowed.keeps(value):
            raise BadRequest(f"{field} is {value}, but must be {allowed.text()}", field)
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        text = f"min_tokens is {request.min_tokens}, but must be at most max_tokens, which is {request.max_tokens}"
        raise BadRequest(text, "min_tokens")
    _check_stop(request.stop)
    _check_biases(request.logit_bias)
    json_schema(request.response_format)
    if isinstance(request, Generate) and request.echo and request.logprobs is not None:
        raise BadRequest("echo with logprobs asks for those of the prompt, which are not computed here", "echo")


def _check_stop(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise BadRequest(f"stop has {len(stop)} strings, but must have at most {MAX_STOP_STRINGS}", "stop")
    if "" in stop:
        raise BadRequest("stop has an empty string, which would end every answer at once", "stop")
    longest = max(map(len, stop), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise BadRequest(f"stop has a string of {longest} characters, the limit is {MAX_STOP_CHARACTERS}", "stop")


def check_bias_count(count: int) -> None:
    """Whether these are not too many tokens."""
    if count > MAX_BIASES:
        raise BadRequest(f"logit_bias has {count} tokens, but must have at most {MAX_BIASES}", "logit_bias")


def _check_biases(biases: dict[int, float]) -> None:
    check_bias_count(len(biases))
    for token, bias in biases.items():
        if not -100 <= bias <= 100:
            raise BadRequest(f"logit_bias of token {token} is {bias}, but must be from -100 to 100", "logit_bias")


def json_schema(response_format: dict[str, Any] | None) -> str:
    """The schema that the answer must keep to, "" for any text."""
    if response_format is None:
        return ""
    kind = response_format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise _bad_format(f"type is {kind!r}, but must be text, json_object or json_schema")
    extra = set(response_format) - {"type", *(["json_schema"] if kind == "json_schema" else [])}
    if extra:
        raise _bad_format(f"of type {kind} has a field {min(extra)!r} that is not known here")
    if kind == "json_schema":
        return _schema_in(response_format.get("json_schema"))
    return '{"type":"object"}' if kind == "json_object" else ""


def _schema_in(wrapped: Any) -> str:
    if not isinstance(wrapped, dict) or not isinstance(wrapped.get("schema"), dict):
        raise _bad_format("needs json_schema, an object with the schema under `schema`")
    extra = set(wrapped) - {"name", "description", "schema", "strict"}
    if extra:
        raise _bad_format(f"json_schema has a field {min(map(str, extra))!r} that is not known here")
    try:
        text = msgspec.json.encode(wrapped["schema"]).decode()
    except (TypeError, ValueError, RecursionError) as error:  # MessagePack has keys and values that JSON has not
        raise _bad_format(f"json_schema.schema is no JSON: {error}") from error
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise _bad_format(f"json_schema.schema has {len(text)} characters, the limit is {MAX_SCHEMA_CHARACTERS}")
    return text


def _bad_format(text: str) -> BadRequest:
    return BadRequest(f"response_format {text}", "response_format")


def check_engine(request: Asked, features: Collection[Feature], max_model_len: int) -> None:
    """Whether the engines do what is asked for. Raises Unavailable while no worker has told."""
    if max_model_len <= 0:
        raise Unavailable("no worker has told yet what its engine can do")
    for field, feature in _features_asked(request):
        if feature not in features:
            raise BadRequest(f"{field} is nothing that the engine behind this model does", field)


def _features_asked(request: Asked) -> list[tuple[str, Feature]]:
    asked: list[tuple[str, Feature]] = []
    if request.logprobs is not None:
        asked.append(("logprobs", "logprobs"))
    for field, neutral in (("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1)):
        if getattr(request, field) != neutral:
            asked.append((field, "penalties"))
    if request.logit_bias:
        asked.append(("logit_bias", "logit_bias"))
    if json_schema(request.response_format):
        asked.append(("response_format", "json_schema"))
    return asked


def prompts_of(prompt: str | Sequence[int | str | list[int]]) -> list[str | list[int]]:
    """One or several prompts as a list. A list of numbers is one of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if not prompt:
        raise BadRequest("prompt is empty", "prompt")
    if kinds == {int}:
        return [list(prompt)]  # type: ignore[arg-type] # all of them are numbers
    if int in kinds:
        raise BadRequest("prompt mixes token ids with prompts; send token ids, or a list of prompts", "prompt")
    return list(prompt)  # type: ignore[arg-type] # none of them is a number


def check_choices(prompts: int, n: int) -> None:
    """Whether so many answers can be asked for in one request."""
    if prompts * n > MAX_CHOICES:
        text = f"{prompts} prompts with n {n} are {prompts * n} answers, but one request may ask for {MAX_CHOICES}"
        raise BadRequest(text, "n" if n > 1 else "prompt")


def check_prompt(tokens: Sequence[int], request: Asked, vocab_size: int, max_model_len: int) -> None:
    """Whether these tokens are ones of the model, and leave room for the answer."""
    param = "messages" if isinstance(request, Chat) else "prompt"
    if not tokens:
        raise BadRequest(f"{param} is empty", param)
    for wrong in (min(tokens), max(tokens)):
        if not 0 <= wrong < vocab_size:
            raise BadRequest(f"prompt has the token id {wrong}, but ids are 0 to {vocab_size - 1}", "prompt")
    for token in request.logit_bias:
        if not 0 <= token < vocab_size:
            raise BadRequest(f"logit_bias has the token id {token}, but ids are 0 to {vocab_size - 1}", "logit_bias")
    wanted = 1 if request.max_tokens is None and isinstance(request, Chat) else _wanted(request)
    if len(tokens) + wanted > max_model_len:
        text = (
            f"the model's context is {max_model_len} tokens, but {len(tokens) + wanted} were asked for: "
            f"{len(tokens)} of the prompt and max_tokens {wanted}"
        )
        raise BadRequest(text, param if len(tokens) >= max_model_len else "max_tokens")


def _wanted(request: Asked) -> int:
    return COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens


def sampling_of(
    request: Asked, vocab_size: int, prompt_tokens: int, max_model_len: int, chat_max_tokens: int, choice: int = 0
) -> Sampling:
    """How tokens are drawn; a `top_k` that leaves all tokens in is 0. Each of several choices has a seed of its own."""
    open_end = request.max_tokens is None and isinstance(request, Chat)
    left = max(min(chat_max_tokens, max_model_len - prompt_tokens), 1)
    max_tokens = left if open_end else _wanted(request)
    if request.min_tokens > max_tokens:
        text = f"min_tokens is {request.min_tokens}, but the answer has at most {max_tokens} tokens"
        raise BadRequest(text, "min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k if 0 < request.top_k < vocab_size else 0,
        # -1 is vLLM's word for none
        seed=None if request.seed in (None, -1) else _wrapped(request.seed + choice),
        ignore_eos=request.ignore_eos,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        logprobs=request.logprobs,
        json_schema=json_schema(request.response_format),
    )


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
