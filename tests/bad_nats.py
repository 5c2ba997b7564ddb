"""Payloads, headers and subjects that the NATS side must refuse, each with the failure that says why.

Consumes nothing. Produces `CASES`, for whatever serves the model `emulated` with the emulated engine's vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from dopd.engine.sim.tokens import VOCABULARY

CONTEXT = 131_072
TEXT: Mapping[str, Any] = {"type": "Generate", "model": "emulated", "prompt": "Once upon a time", "max_tokens": 2}
CHAT: Mapping[str, Any] = {
    "type": "Chat", "model": "emulated", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2,
}  # fmt: skip
GENERATE, CHATS, MODELS = "dopd.v1.generate", "dopd.v1.chat", "dopd.v1.models"
INVALID = "invalid_request_error"
NAN, INFINITY = float("nan"), float("inf")
ABSENT = object()
pack = msgspec.msgpack.encode


@dataclass(frozen=True)
class Case:
    """A payload and its failure. `says` is part of the message."""

    name: str
    payload: bytes
    param: str | None = None
    subject: str = GENERATE
    status: int = 400
    code: str = INVALID
    says: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def nested(depth: int) -> Any:
    """Arrays in arrays."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _bytes() -> Iterator[Case]:
    """What is no map of the right type."""
    whole = pack(TEXT)
    payloads = {
        "empty": b"",
        "nil": b"\xc0",
        "a number": pack(5),
        "a text": pack("Once"),
        "an array": pack([TEXT]),
        "bytes": pack(whole),
        "an extension": pack(Ext(5, whole)),
        "a time": pack(datetime(2026, 1, 1, tzinfo=UTC)),
        "an unused byte": b"\xc1",
        "JSON": msgspec.json.encode(TEXT),
        "text": b"Once upon a time",
        "zeros": b"\0" * 1000,
        "100,000 arrays deep": b"\x91" * 100_000,
        "an array of 4,294,967,295": b"\xdd\xff\xff\xff\xff",
        "a map of 4,294,967,295": b"\xdf\xff\xff\xff\xff",
        "a text of 4,294,967,295": b"\x81\xdb\xff\xff\xff\xff",
        "a prompt of 4,294,967,295": b"\x82\xa5model\xa1m\xa6prompt\xdd\xff\xff\xff\xff",
        "bytes of 4,294,967,295": b"\x81\xa5model\xc6\xff\xff\xff\xff",
        "two messages": whole * 2,
        "a byte too many": whole + b"\x01",
        "no UTF-8 in a value": b"\x82\xa5model\xa8emulated\xa6prompt\xa2\xff\xfe",
        "half a character": b"\x82\xa5model\xa8emulated\xa6prompt\xa1\xc3",
        "no UTF-8 in a key": b"\x81\xa2\xff\xfe\x01",
        "a number for a key": pack({5: 1}),
        "bytes for a key": b"\x81\xc4\x05model\xa8emulated",
        "a map for a key": b"\x81\x80\x01",
    }
    for name, payload in payloads.items():
        yield Case(f"payload: {name}", payload, says="the payload is no message for dopd.v1.generate")
    for length in range(1, len(whole)):
        yield Case(f"cut at byte {length}", whole[:length], says="the payload is no message")
    for kind in ("Chat", "Completion", "Failure", "PrefillWork", "generate", "", "x" * 100_000, 5, None, True, []):
        yield Case(f"type {kind!r:.20}", pack({**TEXT, "type": kind}), "type")
    yield Case("a chat's type on models", pack({"type": "Chat"}), "type", MODELS)
    yield Case("models with a field", pack({"type": "ModelsRequest", "all": True}), "all", MODELS)
    yield Case("models as text", b"models", None, MODELS)


_WRONG: Mapping[str, tuple[Any, ...]] = {
    "model": (ABSENT, None, 5, b"emulated", Ext(1, b"emulated"), ["emulated"]),
    "max_tokens": (0, -1, 1.5, "5", True, 2**63, 2**64 - 1, -(2**63), CONTEXT, b"5", NAN, Ext(1, b"")),
    "min_tokens": (-1, 3, None, "1"),
    "temperature": (-1, NAN, INFINITY, -INFINITY, "1", None),
    "top_p": (0, 1.1, NAN, "x"),
    "top_k": (-2, 2.5, "x"),
    "min_p": (-0.1, NAN, 2),
    "seed": (2**63, 2**64 - 1, 1.5, "x"),
    "stop": ("stop", [""], ["a", b"b"], ["a"] * 5, None, {"a": 1}),
    "n": (0, -1, 129, 2**62, None),
    "presence_penalty": (3, NAN), "frequency_penalty": (-3, INFINITY), "repetition_penalty": (0, -1, NAN, INFINITY),
    "logit_bias": ({-1: 1}, {VOCABULARY: 1}, {2**64 - 1: 1}, {5: NAN}, {5: 101}, {5: "x"}, {"a": 1}, [5], None),
    "stream": (1, "yes", None), "ignore_eos": (0,), "return_tokens": (1,), "timeline": (1,),
    "timeout_s": (0, -1, NAN, INFINITY, "1"), "slo_ttft_s": (0, NAN), "slo_tpot_s": (-1, "x"),
    "priority": (2**63, 1.5, None), "traceparent": (5, None),
    "response_format": ("json", {}, {"type": "xml"}, {"type": ["json_schema"]}, {"type": "text", "x": 1}, {5: 1}),
    "nope": (1,), "max_completion_tokens": (5,), "x" * 100_000: (1,),
}  # fmt: skip
"""Of both kinds: values that are refused by the name of their field."""

_WRONG_TEXT: Mapping[str, tuple[Any, ...]] = {
    "prompt": (
        ABSENT, None, 5, b"Once", {}, [], "", [[]], [""], [1, "a"], [True], [1.5], [None], [-1], [VOCABULARY],
        [2**64 - 1], [[1, "x"]], [[[1]]], [5] * (CONTEXT + 1), ["a"] * 129, Ext(5, b"Once"),
        datetime(2026, 1, 1, tzinfo=UTC),
    ),
    "logprobs": (-1, 21, True, "5"), "echo": (1,), "messages": ([],),
}  # fmt: skip

_WRONG_CHAT: Mapping[str, tuple[Any, ...]] = {
    "messages": (ABSENT, None, [], {}, "hi", [1], [None], [[]], [{5: "x"}], Ext(1, b"")),
    "messages[0].role": ([{}], [{"role": 5}], [{"role": b"user", "content": "x"}]),
    "messages[0].content": (
        [{"role": "user", "content": b"x"}], [{"role": "user", "content": Ext(1, b"")}],
        [{"role": "user", "content": [{"type": "text", "text": b"x"}]}],
        [{"role": "user", "content": [{"type": nested(500), "text": "x"}]}],
    ),
    "add_generation_prompt": (1,), "chat_template_kwargs": (5, {5: 1}, {"messages": []}), "prompt": ("x",),
}  # fmt: skip


def _fields() -> Iterator[Case]:
    """A map of the right type with one thing wrong."""
    for wrong, base, subject in ((_WRONG | _WRONG_TEXT, TEXT, GENERATE), (_WRONG | _WRONG_CHAT, CHAT, CHATS)):
        for param, values in wrong.items():
            name = param.partition("[")[0]
            for place, value in enumerate(values):
                fields = {key: each for key, each in {**base, name: value}.items() if each is not ABSENT}
                yield Case(f"{subject} {param[:50]} {place}", pack(fields), param[:100], subject)
    for model in ("other", "", "x" * 100_000):
        yield Case(f"model {model:.20}", pack({**TEXT, "model": model}), "model", status=404, code="model_not_found")
    deep = b"\x82\xa5model\xa8emulated\xa6prompt" + b"\x91" * 100_000
    yield Case("a prompt 100,000 arrays deep", deep, "prompt")
    deep = b"\x82\xa5model\xa8emulated\xb4chat_template_kwargs" + b"\x81\xa1a" * 50_000
    yield Case("50,000 maps deep where anything may be", deep, None, CHATS, says="recursion")
    # The same key twice: the last one counts.
    twice = pack(TEXT)[1:] + pack({"max_tokens": 0})[1:]
    yield Case("the same key twice", b"\x85" + twice, "max_tokens")
    for name, values in (
        ("x-request-timeout-ms", ("soon", "0", "nan")), ("x-slo-ttft-ms", ("-1",)), ("x-priority", ("high", "9" * 30)),
    ):  # fmt: skip
        for value in values:
            yield Case(f"{name}: {value}", pack(TEXT), name, headers={name: value})


CASES = (*_bytes(), *_fields())
NOBODY = (
    "dopd.v2.generate", "dopd.v0.generate", "dopd.generate", "dopd.v1", "dopd.v1.generate.more", "dopd.v1.Generate",
    "dopd.v1.completions", "dopd.v1.worker.w9.prefill",
)  # fmt: skip
"""Subjects on which nobody answers, which a caller is told at once."""
