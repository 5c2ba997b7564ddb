"""MessagePack that nobody meant: valid requests with wrong values, bytes changed, and noise.

Each gets one answer, and none is our fault. Hypothesis changes fields; plain chance, which is faster, changes bytes.
`FUZZ_CASES=100000` for many.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from dopd.bus.memory import MemoryBroker
from dopd_gateway.nats_api import NatsApi
from dopd_proto.asked import Chat, Chunk, Completion, Failure, Generate, ModelsReply
from dopd_proto.subjects import Address
from tests.bad_nats import CASES as BAD
from tests.bad_nats import CHAT, CHATS, GENERATE, MODELS, TEXT, pack
from tests.fuzz_rig import CASES, SEED, answering, fuzzed

EACH = CASES or 1000
LIMIT_S = 30
INBOX = "inbox"
KNOWN = {
    GENERATE: ["type", "nope", *Generate.__struct_fields__],
    CHATS: ["type", "nope", *Chat.__struct_fields__],
    MODELS: ["type", "nope"],
}
Answer = Chunk | Completion | Failure | ModelsReply
GOOD: dict[str, dict[str, Any]] = {GENERATE: dict(TEXT), CHATS: dict(CHAT), MODELS: {"type": "ModelsRequest"}}

ext = st.builds(Ext, st.sampled_from([-128, 0, 5, 127]), st.binary(max_size=9))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.integers(-2, 200), st.floats(), st.text(max_size=20),
    st.binary(max_size=20), ext, st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    st.sampled_from(["user", "text", "json_schema", "emulated", "Chat"]),
)  # fmt: skip
keys = st.one_of(
    st.text(max_size=9), st.integers(-5, 2**40), st.binary(max_size=5),
    st.sampled_from(["role", "content", "type", "text", "name", "schema", "json_schema"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
whole, real, flag = st.integers(-2, 40), st.floats(-3, 3) | st.sampled_from([0.0, 1.0]), st.booleans()
ids, words = st.lists(st.integers(-1, 40_000), max_size=6), st.text(max_size=12)
message = st.fixed_dictionaries({"role": words}, optional={"content": words | values, "name": words, "x": values})
NEAR: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["emulated", "other", ""]), "prompt": words | ids | st.lists(words | ids, max_size=4),
    "max_tokens": whole | st.none(), "min_tokens": whole, "temperature": real, "top_p": real, "top_k": whole,
    "min_p": real, "seed": st.integers(-(2**63), 2**63 - 1), "stop": st.lists(words, max_size=5), "n": whole,
    "presence_penalty": real, "frequency_penalty": real, "repetition_penalty": real, "logprobs": whole,
    "logit_bias": st.dictionaries(st.integers(-1, 40_000), real, max_size=4), "ignore_eos": flag, "stream": flag,
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema", "x"])}, optional={"json_schema": values}
    ),
    "return_tokens": flag, "timeout_s": real, "slo_ttft_s": real, "slo_tpot_s": real, "priority": whole,
    "timeline": flag, "traceparent": words, "echo": flag, "messages": st.lists(message, max_size=3),
    "add_generation_prompt": flag, "chat_template_kwargs": st.dictionaries(words, values, max_size=3),
    "type": st.sampled_from(["Generate", "Chat", "ModelsRequest", "Failure"]), "nope": values,
}  # fmt: skip
"""Values that may be right, or nearly."""


@st.composite
def changes(draw: st.DrawFn, known: list[str]) -> dict[str, Any]:
    """Up to four fields with other values, one in five of which may be anything."""
    fields = draw(st.lists(st.sampled_from(known), max_size=4, unique=True))
    return {name: draw(NEAR[name] if draw(st.integers(0, 4)) else values) for name in fields}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A subject and a payload for it."""
    subject = draw(st.sampled_from(list(GOOD)))
    kind = draw(st.sampled_from(["fields", "fields", "fields", "value", "bytes", "noise"]))
    if kind == "noise":
        return subject, draw(st.binary(max_size=200))
    if kind == "value":
        return subject, pack(draw(values))
    changed = draw(changes(KNOWN[subject]))
    payload = pack({**GOOD[subject], **changed})
    if kind == "bytes":
        place = draw(st.integers(0, len(payload) - 1))
        length = draw(st.integers(0, 4))
        payload = payload[:place] + draw(st.binary(max_size=4)) + payload[place + length :]
    return subject, payload


class Caller:
    """A gateway on a bus in memory, and whoever asks it."""

    def __init__(self) -> None:
        self._broker = MemoryBroker()
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()

    async def start(self) -> None:
        bus = self._broker.connect("gateway")
        bus.on_fault(lambda _: None)
        await NatsApi(bus, answering()[1]).start()
        types = (Chunk, Completion, Failure, ModelsReply)
        await self._broker.connect("caller").subscribe(
            Address(INBOX, types), lambda delivery: self._answers.put_nowait(delivery.message)
        )

    async def ask(self, subject: str, payload: bytes) -> Answer:
        """The last answer; any before it are chunks."""
        self._broker.inject(subject, payload, INBOX)
        async with asyncio.timeout(LIMIT_S):
            while isinstance(answer := await self._answers.get(), Chunk):
                pass
        assert self._answers.empty()
        return answer


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.mark.timeout(0 if CASES else 120)
def test_whatever_comes_gets_one_answer_that_is_not_our_fault_and_the_next_is_served(runner: asyncio.Runner) -> None:
    caller = Caller()
    runner.run(caller.start())
    seen: Counter[str] = Counter()

    @fuzzed(EACH)
    @given(request=requests())
    def each(request: tuple[str, bytes]) -> None:
        subject, payload = request
        answer = runner.run(caller.ask(subject, payload))
        seen[f"{answer.status}" if isinstance(answer, Failure) else type(answer).__name__] += 1
        if isinstance(answer, Failure):
            assert 400 <= answer.status < 500, answer
            assert 0 < len(answer.message) < 1000 and len(msgspec.msgpack.encode(answer)) < 2000
        if not sum(seen.values()) % 100:
            after = runner.run(caller.ask(subject, pack(GOOD[subject])))
            assert not isinstance(after, Failure), after

    each()
    print(f"mutated fields: {dict(seen)}")
    assert seen["400"] and seen["404"] and seen["Completion"] and seen["ModelsReply"]


def mutated(payload: bytes, other: bytes, rng: random.Random) -> bytes:
    """The payload with a few bytes changed, taken away, put in, or replaced by a piece of another one."""
    changed = bytearray(payload)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randint(0, len(changed)), rng.randint(0, 6)
        piece = rng.choice(
            [rng.randbytes(length), other[(at := rng.randint(0, len(other))) : at + 4 * length], b"", b""]
        )
        changed[place : place + rng.randint(0, len(piece) or length)] = piece
    return bytes(changed)


@pytest.mark.timeout(0 if CASES else 120)
def test_bytes_changed_by_chance_get_one_answer_and_the_next_is_served(runner: asyncio.Runner) -> None:
    rng = random.Random(f"{SEED}/bytes")
    caller, seen = Caller(), Counter[str]()
    pool = [(subject, pack(fields)) for subject, fields in GOOD.items()] * 20
    pool += [(case.subject, case.payload) for case in BAD if len(case.payload) < 500]

    async def all_of_them() -> None:
        await caller.start()
        for number in range(CASES or 5000):
            subject, payload = rng.choice(pool)
            answer = await caller.ask(subject, mutated(payload, rng.choice(pool)[1], rng))
            seen[f"{answer.status}" if isinstance(answer, Failure) else type(answer).__name__] += 1
            assert not isinstance(answer, Failure) or 400 <= answer.status < 500, answer
            if not number % 100:
                assert not isinstance(after := await caller.ask(subject, pack(GOOD[subject])), Failure), after

    runner.run(all_of_them())
    print(f"mutated bytes: {dict(seen)}")
    assert seen["400"] and seen["404"] and seen["Completion"]
