"""Bodies in OpenAI's formats, read: text completions and chats. Pure.

Consumes: JSON bytes. Produces: `Ask`, or a BadRequest. A field that we do not support is refused by name unless its
value asks for nothing; none is ignored in silence. The tables are also what the OpenAPI document is made from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from dopd.errors import BadRequest
from dopd_gateway.limits import MAX_CHOICES, RANGES
from dopd_gateway.validate import check_bias_count, check_choices
from dopd_proto.asked import Chat, Generate

# Fields of the body that are fields of our message, most under the same name. Those of the second and third line are
# not OpenAI's: names as in vLLM, and our `timeout_s`.
_COMMON = {
    **{f: f for f in ("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n", "logit_bias")},
    **{f: f for f in ("presence_penalty", "frequency_penalty", "response_format", "min_tokens", "top_k", "min_p")},
    **{f: f for f in ("repetition_penalty", "ignore_eos", "priority", "timeout_s")},
    "return_token_ids": "return_tokens",
}
# What clients send though it changes nothing. `null` changes nothing in any field.
_NO_OPS: Mapping[str, Any] = {
    "length_penalty": 1,
    "prompt_logprobs": None,
    "use_beam_search": False,
    "stop_token_ids": [],
    "bad_words": [],
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
}
LABELS = frozenset({"user", "safety_identifier", "prompt_cache_key", "metadata"})
"""For the provider's statistics, without effect on the answer."""


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of body: `fields` by their names there, `no_ops` with the one value that each may have."""

    kind: type[Generate] | type[Chat]
    fields: Mapping[str, str]
    no_ops: Mapping[str, Any]
    required: tuple[str, ...]


COMPLETION = Form(
    Generate,
    {**_COMMON, **{f: f for f in ("prompt", "echo", "logprobs")}},
    {**_NO_OPS, "best_of": 1, "suffix": "", "add_special_tokens": True},
    ("model", "prompt"),
)
CHAT = Form(
    Chat,
    {**_COMMON, **{f: f for f in ("messages", "logprobs", "add_generation_prompt", "chat_template_kwargs")}},
    {
        **_NO_OPS, "tools": [], "functions": [], "tool_choice": "none", "store": False, "modalities": ["text"],
        "service_tier": "auto", "parallel_tool_calls": True, "add_special_tokens": False,
    },
    ("model", "messages"),
)  # fmt: skip
STREAM_OPTIONS: Mapping[str, Any] = {"include_obfuscation": False}
_WHICH_USAGE = ("include_usage", "continuous_usage_stats")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the body has it. `continuous_usage`: each event says how many tokens there are so far."""

    asked: Generate | Chat
    include_usage: bool = False
    continuous_usage: bool = False


def parse(body: bytes, form: Form = COMPLETION) -> Ask:
    """Raises BadRequest naming the field."""
    fields = object_of(body)
    include, continuous = _usage_asked(fields.pop("stream_options", None), fields.get("stream") is True)
    for label in LABELS & fields.keys():
        del fields[label]
    if form is CHAT:
        _as_in_completions(fields)
    asked: Generate | Chat = message_of(fields, form)
    return Ask(asked, include, continuous)


def object_of(body: bytes) -> dict[str, Any]:
    """The fields that are not null."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from error
    return {name: value for name, value in fields.items() if value is not None}


def _as_in_completions(fields: dict[str, Any]) -> None:
    """What a chat names otherwise: the length, and `logprobs`, which is a flag beside the number."""
    longest = fields.pop("max_completion_tokens", None)
    if longest is not None:
        if fields.get("max_tokens", longest) != longest:
            text = "max_completion_tokens and max_tokens differ; they mean the same, so send one of them"
            raise BadRequest(text, "max_completion_tokens")
        fields["max_tokens"] = longest
    wanted, count = fields.pop("logprobs", False), fields.pop("top_logprobs", None)
    if not isinstance(wanted, bool):
        raise BadRequest("logprobs must be true or false", "logprobs")
    if not wanted and count is not None and (count != 0 or isinstance(count, bool)):
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    if wanted:
        fields["logprobs"] = 0 if count is None else _top_logprobs(count)


def _top_logprobs(count: Any) -> int:
    """Checked here: the message has another name for it."""
    if not isinstance(count, int) or isinstance(count, bool) or not RANGES["logprobs"].keeps(count):
        raise BadRequest(f"top_logprobs must be a whole number, {RANGES['logprobs'].text()}", "top_logprobs")
    return count


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
    _refuse(options, STREAM_OPTIONS, "stream_options.")
    return include, include and continuous


def _refuse(fields: Mapping[str, Any], no_ops: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in fields.items():
        if name not in no_ops:
            raise BadRequest(f"the field {prefix}{name[:100]} is not known here", f"{prefix}{name[:100]}")
        # 0 == False in Python, but `best_of: true` is a mistake.
        if value != no_ops[name] or isinstance(value, bool) != isinstance(no_ops[name], bool):
            text = f"the field {prefix}{name} is not supported, but for the value that asks for nothing"
            raise BadRequest(text, f"{prefix}{name}")


def message_of(fields: dict[str, Any], form: Form) -> Any:
    """The message that the fields make. Raises BadRequest."""
    _refuse({name: value for name, value in fields.items() if name not in form.fields}, form.no_ops)
    for required in form.required:
        if required not in fields:
            raise BadRequest(f"{required} is missing", required)
    known = {ours: fields[theirs] for theirs, ours in form.fields.items() if theirs in fields}
    if isinstance(known.get("stop"), str):
        known["stop"] = [known["stop"]]
    # What is far too much is refused before it is read: the loop stands still meanwhile.
    many = known.get("prompt")
    if isinstance(many, list) and len(many) > MAX_CHOICES and not isinstance(many[0], int):
        check_choices(len(many), known["n"] if type(known.get("n")) is int else 1)
    if isinstance(known.get("logit_bias"), dict):
        check_bias_count(len(known["logit_bias"]))
        known["logit_bias"] = {_token_id(key): bias for key, bias in known["logit_bias"].items()}
    try:
        return msgspec.convert(known, form.kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(error, form) from error


def _token_id(key: str) -> int:
    if not re.fullmatch(r"\d{1,10}", key, re.ASCII):
        raise BadRequest(f"logit_bias: {key[:100]!r} is no token id", "logit_bias")
    return int(key)


def _wrong_type(error: msgspec.ValidationError, form: Form) -> BadRequest:
    text, _, path = str(error).partition(" - at `$.")
    ours = re.split(r"\W", path, maxsplit=1)[0]
    param = next((theirs for theirs, name in form.fields.items() if name == ours), None)
    return BadRequest(f"{param}: {text}" if param else text, param)
