"""The OpenAPI document, made from what the gateway checks by: the messages, the bodies' tables, the ranges. Pure.

Consumes: the served model's name. Produces: a JSON-like dict, served at `/openapi.json`.
"""

from typing import Any

import msgspec

from dopd_gateway.limits import LONGEST_S, MAX_CHOICES, MAX_MESSAGES, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, RANGES
from dopd_gateway.openai_parse import CHAT, COMPLETION, LABELS, STREAM_OPTIONS, Form
from dopd_gateway.tokenize_forms import Detokenize, Tokenize, TokenizeChat

_ERRORS = {
    400: "the request can never succeed as it is; `param` names the field",
    401: "an API key is wanted, and none came that is known",
    404: "another model than the one that is served",
    413: "the body is too large; both sizes are named",
    429: "too many requests of this key, or the queue is full; see Retry-After",
    503: "nothing can serve it now; see Retry-After",
    504: "the deadline has passed",
}
_HEADERS = {
    "x-request-timeout-ms": {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_S * 1000},
    "x-slo-ttft-ms": {"type": "number", "exclusiveMinimum": 0},
    "x-slo-tpot-ms": {"type": "number", "exclusiveMinimum": 0},
    "x-priority": {"type": "integer"},
    "x-request-id": {"type": "string"},
    "traceparent": {"type": "string"},
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_NULL = {"type": "null"}
"""Of what is not known: a client that sends null asks for nothing."""
_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_SEVERAL = {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1, "maxItems": MAX_CHOICES}
_PROMPT = {"anyOf": [_TEXT, _IDS, _SEVERAL]}
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": _TEXT,
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]},
            "name": {"type": ["string", "null"]},
        },
    },
}


def document(model: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    post, get = _operations(model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "DOPD", "version": "1", "description": "OpenAI-compatible; see docs/http-api.md"},
        "paths": {
            **{path: {"post": _post(schema, answer, path)} for path, (schema, answer) in post.items()},
            **{path: {"get": _get(answer)} for path, answer in get.items()},
        },
        "components": {"schemas": {"Error": _ERROR_SCHEMA}},
    }


def body_schema(form: Form, model: str) -> dict[str, Any]:
    """JSON Schema of a body."""
    _, parts = msgspec.json.schema_components([form.kind], ref_template="#/$defs/{name}")
    known = parts[form.kind.__name__]["properties"]
    fields = {theirs: _field(known[ours], ours) for theirs, ours in form.fields.items()}
    fields |= {name: {"enum": [value, None]} for name, value in form.no_ops.items()}
    fields |= {label: {} for label in sorted(LABELS)}
    fields["model"] = {"const": model}
    if form is COMPLETION:
        fields["prompt"] = _PROMPT
    fields["stop"] = _or_null({"anyOf": [
        {**_TEXT, "maxLength": MAX_STOP_CHARACTERS},
        {"type": "array", "items": {**_TEXT, "maxLength": MAX_STOP_CHARACTERS}, "maxItems": MAX_STOP_STRINGS},
    ]})  # fmt: skip
    biases = {"type": "number", "minimum": -100, "maximum": 100}
    fields["logit_bias"] = _or_null({"type": "object", "additionalProperties": biases})
    fields["stream_options"] = _or_null(_stream_options())
    if form is CHAT:
        fields["messages"] = _MESSAGES
        fields["max_completion_tokens"] = fields["max_tokens"]
        fields["top_logprobs"] = fields["logprobs"]
        fields["logprobs"] = {"type": ["boolean", "null"]}
    return {
        "type": "object",
        "properties": fields,
        "required": list(form.required),
        "additionalProperties": _NULL,
    }


def _field(schema: dict[str, Any], name: str) -> dict[str, Any]:
    schema = {key: value for key, value in schema.items() if key != "default"}
    if name in RANGES:
        kinds = schema.get("anyOf", [schema])
        schema = {"anyOf": [k | RANGES[name].schema() if k["type"] != "null" else k for k in kinds]}
    return _or_null(schema)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


def _stream_options() -> dict[str, Any]:
    flags = {name: {"type": ["boolean", "null"]} for name in ("include_usage", "continuous_usage_stats")}
    same = {name: {"enum": [value, None]} for name, value in STREAM_OPTIONS.items()}
    return {"type": "object", "properties": flags | same, "additionalProperties": False}


def _operations(model: str) -> tuple[dict[str, tuple[dict[str, Any], str]], dict[str, str]]:
    tokenize = {"anyOf": [_plain(Tokenize, model), _plain(TokenizeChat, model)]}
    post = {
        "/v1/completions": (body_schema(COMPLETION, model), "the answer, or with `stream` server-sent events"),
        "/v1/chat/completions": (body_schema(CHAT, model), "the answer, or with `stream` server-sent events"),
        "/tokenize": (tokenize, "`tokens`, their `count`, and `max_model_len`"),
        "/detokenize": (_plain(Detokenize, model), "`prompt`, the text"),
    }
    get = {
        "/v1/models": "the models served",
        "/health": "the process lives",
        "/ready": "a worker serves",
        "/openapi.json": "this document",
    }
    return post, get


def _plain(kind: type[msgspec.Struct], model: str) -> dict[str, Any]:
    schema: dict[str, Any] = msgspec.json.schema_components([kind])[1][kind.__name__]
    known = {"model": {"const": model}, "tokens": {**_IDS, "minItems": 0}, "messages": _MESSAGES}
    properties = {
        name: known.get(name, each if name in schema["required"] else _or_null(each))
        for name, each in schema["properties"].items()
    }
    return schema | {"properties": properties, "additionalProperties": _NULL}


def _post(schema: dict[str, Any], answer: str, path: str) -> dict[str, Any]:
    headers = [{"in": "header", "name": name, "schema": kind} for name, kind in _HEADERS.items()]
    kinds = ["application/json", *(["text/event-stream"] if path.startswith("/v1/") else [])]
    return {
        "parameters": headers if path.startswith("/v1/") else [],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": answer, "content": {kind: {} for kind in kinds}}, **_errors()},
    }


def _get(answer: str) -> dict[str, Any]:
    return {"responses": {"200": {"description": answer, "content": {"application/json": {}}}, **_errors()}}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": text, "content": content} for status, text in _ERRORS.items()}
