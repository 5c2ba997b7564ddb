"""Bodies, paths and headers that a server must refuse, each with the error that says why.

Consumes nothing. Produces `CASES`, for whatever serves the model `emulated` with the emulated engine's vocabulary.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dopd.engine.sim.tokens import VOCABULARY

CONTEXT = 131_072
TEXT: Mapping[str, Any] = {"model": "emulated", "prompt": "Once upon a time", "max_tokens": 2}
CHAT: Mapping[str, Any] = {"model": "emulated", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
JSON = {"content-type": "application/json"}
INVALID = "invalid_request_error"
ABSENT = object()


@dataclass(frozen=True)
class Case:
    """A request and its error. `says` is part of the message."""

    name: str
    body: bytes
    status: int = 400
    code: str = INVALID
    param: str | None = None
    says: str = ""
    path: str = "/v1/completions"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)


def json_of(base: Mapping[str, Any], **fields: Any) -> bytes:
    """The body with these fields, which may be ABSENT. Huge numbers and the like stay as they are."""
    known = {name: value for name, value in {**base, **fields}.items() if value is not ABSENT}
    return json.dumps(known).encode()


def _bytes() -> Iterator[Case]:
    """What is no JSON object."""
    bodies = {
        "empty": b"",
        "blank": b" \n\t",
        "null": b"null",
        "an array": b"[]",
        "an array of a request": b"[" + json_of(TEXT) + b"]",
        "a number": b"1",
        "a string": b'"Once"',
        "cut in a string": b'{"model": "emul',
        "cut after a value": b'{"model": "emulated", "prompt": "Once"',
        "cut after a key": b'{"model"',
        "something after the end": json_of(TEXT) + b"x",
        "two requests": json_of(TEXT) * 2,
        "a comma too many": b'{"model": "emulated", "prompt": "Once",}',
        "single quotes": b"{'model': 'emulated', 'prompt': 'Once'}",
        "a comment": b'{"model": "emulated", /* why */ "prompt": "Once"}',
        "NaN": b'{"model": "emulated", "prompt": "Once", "temperature": NaN}',
        "Infinity": b'{"model": "emulated", "prompt": "Once", "temperature": Infinity}',
        "minus Infinity": b'{"model": "emulated", "prompt": "Once", "temperature": -Infinity}',
        "a number beyond floats": b'{"model": "emulated", "prompt": "Once", "temperature": 1e999}',
        "a leading zero": b'{"model": "emulated", "prompt": "Once", "max_tokens": 05}',
        "a byte order mark": b"\xef\xbb\xbf" + json_of(TEXT),
        "UTF-16": json_of(TEXT).decode().encode("utf-16"),
        "half a character": b'{"model": "emulated", "prompt": "\xc3"}',
        "no UTF-8": b'{"model": "emulated", "prompt": "\xff\xfe"}',
        "no UTF-8 in a key": b'{"model": "emulated", "prompt": "Once", "\xff": 1}',
        "half a surrogate pair": b'{"model": "emulated", "prompt": "\\ud800"}',
        "an unknown escape": b'{"model": "emulated", "prompt": "\\x41"}',
        "a line break in a string": b'{"model": "emulated", "prompt": "a\nb"}',
        "a zero byte": b'{"model": "emulated", "prompt": "Once"}\0',
        "100,000 arrays deep": b"[" * 100_000,
        "100,000 objects deep": b'{"a":' * 100_000,
        "a prompt 100,000 arrays deep": b'{"model": "emulated", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a form": b"model=emulated&prompt=Once",
        "MessagePack": b"\x82\xa5model\xa8emulated\xa6prompt\xa4Once",
        "packed": gzip.compress(json_of(TEXT)),
    }
    for name, body in bodies.items():
        yield Case(f"body: {name}", body, says="the body is not a JSON object")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"):
        yield Case(f"content type {kind}", json_of(TEXT), param="content-type", headers={"content-type": kind})
    yield Case("larger than a message may be", b" " * 9_000_000, 413, "payload_too_large", says="9000000 bytes")


_WRONG: Mapping[str, tuple[Any, ...]] = {
    "model": (ABSENT, None, 5, True, [], {}, ["emulated"]),
    "max_tokens": (0, -1, 1.5, "5", True, [5], {}, 2**63, 2**70, -(2**70), CONTEXT),
    "min_tokens": (-1, 3, 1.5, "1", False),
    "temperature": (-1, -0.001, "1", True, [], {}),
    "top_p": (0, -1, 1.01, "1", True),
    "top_k": (-2, 1.5, "5", True),
    "min_p": (-0.1, 1.1, "x"),
    "seed": (2**63, -(2**63) - 1, 1.5, "1", True),
    "stop": ("", [""], ["a", 3], 5, {}, ["a", "b", "c", "d", "e"], [["a"]], "x" * 1001, ["a", "x" * 1_000_000]),
    "n": (0, -1, 129, 2**40, True, "2", 1.5),
    "presence_penalty": (2.1, -2.1, "1", True),
    "frequency_penalty": (2.1, -2.1, [1]),
    "repetition_penalty": (0, -1, "1"),
    "logit_bias": ({"x": 1}, {"": 1}, {"-1": 1}, {"5": 101}, {"5": "1"}, {str(VOCABULARY): 1}, {"5": None}, [], "5"),
    "stream": ("yes", 1, [], {}),
    "ignore_eos": (1, "true"),
    "priority": (2**63, 1.5, "high"),
    "timeout_s": (0, -1, "1", True),
    "response_format": ("json", [], {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "text", "schema": {}}),
    "return_token_ids": (1, "yes"),
    "best_of": (2, True), "use_beam_search": (True, 1), "bad_words": (["x"], "x"), "stop_token_ids": ([5], 5),
    "skip_special_tokens": (False, 0), "prompt_logprobs": (1,), "length_penalty": (2,),
    "temprature": (1,), "__class__": (1,), "": (1,), "type": ("Generate",), "return_tokens": (True,), "tokens": ([5],),
}  # fmt: skip
"""Of both kinds of bodies: values that are refused by the name of their field."""

_WRONG_TEXT: Mapping[str, tuple[Any, ...]] = {
    "prompt": (
        ABSENT, None, 5, True, {}, [], "", " ", [[]], [""], [1, "a"], ["a", 1], [True], [1.5], [None], ["a", None],
        [-1], [VOCABULARY], [2**32], [2**64], [[1], [-1]], [[1, "x"]], [[[1]]], ["a", []], [{"a": 1}],
        [5] * (CONTEXT + 1), "story " * CONTEXT, ["a"] * 129,
    ),
    "logprobs": (-1, 21, True, "5", 1.5), "echo": ("yes", 1), "suffix": ("x", 5), "messages": ([],),
    "max_completion_tokens": (5,), "top_logprobs": (1,),
}  # fmt: skip

_WRONG_CHAT: Mapping[str, tuple[Any, ...]] = {
    "messages": (
        ABSENT, None, [], {}, "hi", 5, [1], ["hi"], [None], [[]],
        [{"role": "user", "content": "story " * CONTEXT}], [{"role": "user"}] * 10_001,
    ),
    "top_logprobs": (1, "x", True), "tools": ([{}], {}), "tool_choice": ("auto",), "functions": ([{}],),
    "add_generation_prompt": ("x", 1), "chat_template_kwargs": (5, []), "modalities": (["audio"], "text"),
    "prompt": ("x",), "echo": (True,), "store": (True,),
}  # fmt: skip

_WRONG_MESSAGES: tuple[tuple[Any, str], ...] = (
    ({}, "role"),
    ({"role": None, "content": "x"}, "role"),
    ({"role": "", "content": "x"}, "role"),
    ({"role": 5, "content": "x"}, "role"),
    ({"role": ["user"], "content": "x"}, "role"),
    ({"role": "user", "content": 5}, "content"),
    ({"role": "user", "content": {"text": "x"}}, "content"),
    ({"role": "user", "content": [5]}, "content"),
    ({"role": "user", "content": [{"type": "text"}]}, "content"),
    ({"role": "user", "content": [{"type": "text", "text": 5}]}, "content"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content"),
    ({"role": "user", "content": "x", "name": 5}, "name"),
    ({"role": "user", "content": "x", "name": []}, "name"),
    ({"role": "user", "content": "x", "audio": {"id": "x"}}, "audio"),
    ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "tool_calls"),
)


def _fields() -> Iterator[Case]:
    """A JSON object with one thing wrong."""
    chat = "/v1/chat/completions"
    for wrong, base, path in (
        ({**_WRONG, **_WRONG_TEXT}, TEXT, "/v1/completions"),
        ({**_WRONG, **_WRONG_CHAT}, CHAT, chat),
    ):
        for name, values in wrong.items():
            for value in values:
                text = "absent" if value is ABSENT else repr(value)[:40]
                yield Case(f"{path[4:]} {name}: {text}", json_of(base, **{name: value}), param=name, path=path)
    for message, key in _WRONG_MESSAGES:
        body = json_of(CHAT, messages=[{"role": "system", "content": ""}, message])
        yield Case(f"message {message}", body, param=f"messages[1].{key}", path=chat)
    for name, wrong, param in (
        ("stream_options", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("stream_options of a number", {"stream": True, "stream_options": 5}, "stream_options"),
        ("include_usage", {"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
        ("an unknown option", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ("a long name", {"x" * 1000: 1}, "x" * 100),
    ):
        yield Case(name, json_of(TEXT, **wrong), param=param)
    for name, wrong, param in (
        ("two lengths", {"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens"),
        ("logprobs as a number", {"logprobs": 5}, "logprobs"),
        ("too many top_logprobs", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("top_logprobs as text", {"logprobs": True, "top_logprobs": "5"}, "top_logprobs"),
        ("top_logprobs as a flag", {"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        ("top_logprobs below 0", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ("a key of our own", {"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
    ):
        yield Case(name, json_of(CHAT, **wrong), param=param, path=chat)
    deep = json.loads("[" * 500 + "]" * 500)
    yield Case("deep in a field that may hold anything", json_of(CHAT, tools=deep), param="tools", path=chat)
    yield Case("the same key twice", b'{"model": "emulated", "prompt": "a", "max_tokens": 1, "max_tokens": 0}',
               param="max_tokens")  # fmt: skip


def _elsewhere() -> Iterator[Case]:
    """Other models, paths, methods, headers and the token tools."""
    for name in ("other", "", "Emulated", "x" * 10_000, "../etc", "emulated\x00", "émulated"):
        yield Case(f"model {name[:20]!r}", json_of(TEXT, model=name), 404, "model_not_found", "model")
        yield Case(f"chat model {name[:20]!r}", json_of(CHAT, model=name), 404, "model_not_found", "model",
                   path="/v1/chat/completions")  # fmt: skip
    for method, path in (
        ("GET", "/v1/completions"), ("PUT", "/v1/completions"), ("DELETE", "/v1/chat/completions"),
        ("OPTIONS", "/v1/completions"), ("PATCH", "/tokenize"), ("POST", "/v1/models"), ("POST", "/health"),
    ):  # fmt: skip
        yield Case(f"{method} {path}", b"", 405, "method_not_allowed", path=path, method=method)
    for path in (
        "/", "/v1", "/v2/completions", "/v1/completion", "/v1/completions/", "//v1/completions", "/V1/completions",
        "/v1/embeddings", "/v1/completions%2f", "/v1/%ff", "/..%2f..%2fetc/passwd",
    ):  # fmt: skip
        yield Case(f"path {path}", json_of(TEXT), 404, "not_found", path=path)
    for path in ("/v1/models/other", "/v1/models/..%2f..%2fetc", "/v1/models/%00"):
        yield Case(f"path {path}", b"", 404, "model_not_found", "model", path=path, method="GET")
    for name, values in (
        ("x-request-timeout-ms", ("", "soon", "0", "-5", "nan", "inf", "1e999")),
        ("x-slo-ttft-ms", ("0", "fast")), ("x-slo-tpot-ms", ("-1",)), ("x-priority", ("1.5", "high", "9" * 30, "")),
    ):  # fmt: skip
        for value in values:
            yield Case(f"{name}: {value}", json_of(TEXT), param=name, headers={**JSON, name: value})
    for path, base, name, values in (
        ("/tokenize", {"model": "emulated", "prompt": "x"}, "prompt", (ABSENT, 5, ["a"], [5])),
        ("/tokenize", {"model": "emulated", "prompt": "x"}, "add_special_tokens", (1, "x")),
        ("/tokenize", {"model": "emulated", "prompt": "x"}, "tokens", ([5],)),
        ("/tokenize", {"model": "emulated", "messages": []}, "messages", ([], 5, ["x"])),
        ("/detokenize", {"model": "emulated", "tokens": [5]}, "tokens",
         (ABSENT, None, 5, "x", [-1], [VOCABULARY], [2**70], [1.5], [True], ["a"], [[5]])),
    ):  # fmt: skip
        for value in values:
            text = "absent" if value is ABSENT else repr(value)
            yield Case(f"{path} {name}: {text}", json_of(base, **{name: value}), param=name, path=path)
    for path in ("/tokenize", "/detokenize"):
        yield Case(f"{path} of an array", b"[]", says="not a JSON object", path=path)
        body = json_of({"model": "other", "prompt": "x"} if path == "/tokenize" else {"model": "other", "tokens": []})
        yield Case(f"{path} of another model", body, 404, "model_not_found", "model", path=path)


CASES = (*_bytes(), *_fields(), *_elsewhere())
