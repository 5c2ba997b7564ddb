"""The bodies of `/tokenize` and `/detokenize`, as vLLM has them.

Consumes: the fields of a body. Produces: a form that can be asked for its tokens, or a BadRequest that names the field.
"""

from typing import Any, TypeVar

import msgspec

from dopd.errors import BadRequest
from dopd_gateway.api import TextGateway
from dopd_proto.asked import Chat

F = TypeVar("F", bound=msgspec.Struct)


class Tokenize(msgspec.Struct, forbid_unknown_fields=True):
    """Text; with `add_special_tokens` as it would be as a completion's prompt."""

    model: str
    prompt: str
    add_special_tokens: bool = True

    async def tokens(self, api: TextGateway) -> list[int]:
        """The text's ids."""
        return await api.tokenize(self.model, self.prompt, self.add_special_tokens)


class TokenizeChat(msgspec.Struct, forbid_unknown_fields=True):
    """Messages, as they would be a chat's."""

    model: str
    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = {}

    async def tokens(self, api: TextGateway) -> list[int]:
        """The ids of the prompt that the chat template makes."""
        return await api.tokenize_chat(Chat(
            model=self.model, messages=self.messages, add_generation_prompt=self.add_generation_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
        ))  # fmt: skip


class Detokenize(msgspec.Struct, forbid_unknown_fields=True):
    """Token ids."""

    model: str
    tokens: list[int]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Detokenize":
        """Raises BadRequest."""
        return _form(fields, cls)


def tokenize_form(fields: dict[str, Any]) -> Tokenize | TokenizeChat:
    """Raises BadRequest."""
    return _form(fields, TokenizeChat) if "messages" in fields else _form(fields, Tokenize)


def _form(fields: dict[str, Any], kind: type[F]) -> F:
    unknown = next((name for name in fields if name not in kind.__struct_fields__), None)
    if unknown is not None:
        raise BadRequest(f"the field {unknown[:100]} is not known here", unknown[:100])
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in fields:
            raise BadRequest(f"{field.name} is missing", field.name)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        param = path.partition("[")[0].rstrip("`") or None
        raise BadRequest(f"{param}: {text}" if param else text, param) from error
