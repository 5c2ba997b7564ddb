"""A model's chat template: messages in, the prompt's text out.

Consumes: the Jinja text that comes with a model, and checked messages. Produces: what transformers'
`apply_chat_template` gives. The template is the model's, so it runs in Jinja's sandbox; what it refuses is a
BadRequest.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, parser
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dopd.errors import BadRequest, ConfigError
from dopd_gateway.limits import MAX_MESSAGES

_KEYS = frozenset({"role", "content", "name"})
_OURS = frozenset({"messages", "add_generation_prompt"})


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training: here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way to declare it

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Compiled once. `special` are the model's named tokens (bos_token, …), which templates use."""

    def __init__(self, source: str, special: Mapping[str, str], where: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        self._special = dict(special)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(where, "chat_template", f"is no template that can be used: {error}") from error

    def text(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, extra: Mapping[str, Any], now_s: float
    ) -> str:
        """The prompt's text. Raises BadRequest when the template refuses the messages."""
        for name in (_OURS | self._special.keys()) & extra.keys():
            # A template may write the model's own tokens once for each message.
            raise BadRequest(f"{name} cannot be set here", "chat_template_kwargs")

        def strftime_now(form: str) -> str:
            return datetime.fromtimestamp(now_s).strftime(form)

        try:
            return self._template.render(
                **{**self._special, "strftime_now": strftime_now, "tools": None, "documents": None, **extra},
                messages=messages, add_generation_prompt=add_generation_prompt,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise BadRequest(f"the model's chat template refuses the messages: {error}", "messages") from error


def checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages with their content as plain text. Raises BadRequest for what is no text, or is not known."""
    if not messages:
        raise BadRequest("messages is empty", "messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"{len(messages)} messages, but there may be at most {MAX_MESSAGES}", "messages")
    return [_message(place, message) for place, message in enumerate(messages)]


def _message(place: int, message: Mapping[str, Any]) -> dict[str, str]:
    where = f"messages[{place}]"
    # A client that sends an answer back sends empty fields with it.
    given = {key: value for key, value in message.items() if value is not None and (value != [] or key in _KEYS)}
    for key in given:
        if key not in _KEYS:
            raise BadRequest(f"{where} has a field {str(key)[:100]!r} that is not supported", f"{where}.{key}"[:120])
    for key in ("role", "name"):
        if not isinstance(given.get(key, ""), str) or (key == "role" and not given.get(key)):
            raise BadRequest(f"{where}.{key} must be text", f"{where}.{key}")
    plain: dict[str, str] = {str(key): given[key] for key in ("role", "name") if key in given}
    return plain | {"content": _content(where, given.get("content", ""))}


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRequest(f"{where}.content must be text, or a list of text parts", f"{where}.content")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            text = f"{where}.content has a part of type {str(kind)[:100]!r}; only text parts are supported"
            raise BadRequest(text, f"{where}.content")
        texts.append(part["text"])
    return "\n".join(texts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
