"""A body in OpenAI's text completion format, read. Pure.

Consumes: JSON bytes. Produces: `Ask`, or a BadRequest. A field that we do not support is refused by name unless its
value asks for nothing; none is ignored in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from dopd.errors import BadRequest
from dopd_proto.request import Generate

# Fields of the body that are fields of `Generate`, most of them under the same name. The second line is not OpenAI's:
# names as in vLLM, and our `timeout_s`.
_FIELDS = {
    **{f: f for f in ("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream")},
    **{f: f for f in ("min_tokens", "top_k", "ignore_eos", "priority", "timeout_s")},
    "return_token_ids": "return_tokens",
}
# What clients send though it changes nothing. `null` changes nothing in any field.
_NO_OPS: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "min_p": 0,
    "logit_bias": {},
    "logprobs": None,
    "prompt_logprobs": None,
    "use_beam_search": False,
    "stop_token_ids": [],
    "bad_words": [],
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "add_special_tokens": True,
}
_STREAM_OPTIONS: Mapping[str, Any] = {"include_obfuscation": False}
_WHICH_USAGE = ("include_usage", "continuous_usage_stats")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the body has it. `continuous_usage`: each event says how many tokens there are so far."""

    generate: Generate
    include_usage: bool = False
    continuous_usage: bool = False


def parse(body: bytes) -> Ask:
    """Raises BadRequest naming the field."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from error
    fields = {name: value for name, value in fields.items() if value is not None}
    include, continuous = _usage_asked(fields.pop("stream_options", None), fields.get("stream") is True)
    # A label for the provider's statistics, without effect on the answer.
    fields.pop("user", None)
    return Ask(_generate(fields), include, continuous)


def _usage_asked(options: Any, streamed: bool) -> tuple[bool, bool]:
    """At the end, and with each event; the latter only together with the former, as in vLLM."""
    if options is None:
        return False, False
    if not isinstance(options, dict) or not streamed:
        raise BadRequest("stream_options must be an object, and needs stream to be true", "stream_options")
    options = {name: value for name, value in options.items() if value is not None}
    include, continuous = (options.pop(name, False) for name in _WHICH_USAGE)
    for name, value in zip(_WHICH_USAGE, (include, continuous), strict=True):
        if not isinstance(value, bool):
            raise BadRequest(f"stream_options.{name} must be true or false", "stream_options")
    _refuse(options, _STREAM_OPTIONS, "stream_options.")
    return include, include and continuous


def _refuse(fields: Mapping[str, Any], no_ops: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in fields.items():
        if name not in no_ops:
            raise BadRequest(f"the field {prefix}{name[:100]} is not known here", f"{prefix}{name[:100]}")
        # 0 == False in Python, but `echo: 0` and `n: true` are mistakes.
        if value != no_ops[name] or isinstance(value, bool) != isinstance(no_ops[name], bool):
            text = f"the field {prefix}{name} is not supported, but for the value that asks for nothing"
            raise BadRequest(text, f"{prefix}{name}")


def _generate(fields: dict[str, Any]) -> Generate:
    _refuse({name: value for name, value in fields.items() if name not in _FIELDS}, _NO_OPS)
    known = {ours: fields[theirs] for theirs, ours in _FIELDS.items() if theirs in fields}
    for required in ("model", "prompt"):
        if required not in known:
            raise BadRequest(f"{required} is missing", required)
    known["prompt"] = _one_prompt(known["prompt"])
    if isinstance(known.get("stop"), str):
        known["stop"] = [known["stop"]]
    try:
        return msgspec.convert(known, Generate)
    except msgspec.ValidationError as error:
        raise _wrong_type(error) from error


def _one_prompt(prompt: Any) -> Any:
    """A list of one prompt is that prompt; clients of the batch form send it."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise BadRequest(f"prompt has {len(prompt)} prompts; send one request for each", "prompt")
        return prompt[0]
    return prompt


def _wrong_type(error: msgspec.ValidationError) -> BadRequest:
    text, _, path = str(error).partition(" - at `$.")
    ours = re.split(r"\W", path, maxsplit=1)[0]
    param = next((theirs for theirs, name in _FIELDS.items() if name == ours), None)
    return BadRequest(f"{param}: {text}" if param else text, param)
