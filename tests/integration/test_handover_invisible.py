"""Whatever a request is cut at, its answer is that of one worker: text, counts, log-probabilities, ends.

An emulated cluster in virtual time, asked over HTTP. The policy cuts where the test says.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest

from dopd.cluster import ClusterView
from dopd.engine.sim.tokens import VOCABULARY
from dopd.policy.base import Dispatch, Placement, Policy, RequestView, SegmentPlan
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.http import create_app
from dopd_gateway.text import Step
from dopd_loadgen.cluster import LocalCluster
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.subjects import ROLES
from tests.text_side import tiny_vocabulary

PROMPT = list(range(3, 70))
OSL = 24
BODY: dict[str, Any] = {"model": "sim", "prompt": PROMPT, "max_tokens": OSL, "temperature": 0, "return_token_ids": True}
CUTS = [None, 5, 64, *range(67, 67 + OSL)]


class Folded:
    """The emulated engine's ids as those of a small byte-level vocabulary: many characters take several tokens."""

    vocab_size, chats = VOCABULARY, False
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self._inner = tiny_vocabulary()

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self._inner.encode(text, special)

    def decode(self, tokens: Sequence[int], special: bool = True) -> str:
        return self._inner.decode([_folded(token) for token in tokens], special)

    def name(self, token: int) -> str:
        return self._inner.name(_folded(token))

    def stepper(self, prompt: Sequence[int]) -> Step:
        step = self._inner.stepper([_folded(token) for token in prompt])
        return lambda token: step(_folded(token))

    def chat(self, messages: Sequence[Mapping[str, Any]], add: bool, extra: Mapping[str, Any], now_s: float) -> str:
        raise AssertionError("nobody chats here")


def _folded(token: int) -> int:
    # More of the bytes above 127 than of anything else.
    return 3 + 94 + token % 170 if token % 3 else 3 + token % 390


class Cut:
    """Everything to w1, and from `at` tokens on (None: never) to the first decode worker."""

    at: int | None = None

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, Sequence[Dispatch], float | None]:
        whole = tuple(SegmentPlan(worker.worker_id) for worker in cluster.serving("decode")[:1])
        cut = whole if Cut.at is None else (SegmentPlan("w1", Cut.at), *whole)
        if not whole:
            return None, [], None
        placed = [Placement(request.request_id, whole if request.kv_tokens else cut) for request in queue]
        return None, [Dispatch((each,)) for each in placed], None


Ask = Callable[..., Awaitable[dict[str, Any]]]


def serving(test: Callable[[Ask, LocalCluster], Awaitable[None]]) -> None:
    async def main() -> None:
        runtime = VirtualRuntime(0)
        cluster = LocalCluster(runtime, policy=Policy("cut", Cut), latency_s=2e-4)
        await cluster.start()
        api = TextGateway(cluster.gateway, Folded(), runtime, Slo(), 60.0)
        await asyncio.sleep(1.0)  # until everybody knows everybody
        transport = httpx.ASGITransport(app=create_app(api, 1 << 20))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:

            async def ask(cut: int | None, **fields: Any) -> dict[str, Any]:
                Cut.at = cut
                answer = await client.post("/v1/completions", json={**BODY, **fields})
                assert answer.status_code == 200, answer.text
                return streamed(answer.text) if fields.get("stream") else as_said(answer.json())

            await test(ask, cluster)
        await cluster.stop()

    run_virtual(main())


def as_said(body: dict[str, Any]) -> dict[str, Any]:
    """What does not differ between two requests."""
    return {key: value for key, value in body.items() if key not in ("id", "created")}


def streamed(text: str) -> dict[str, Any]:
    """A stream put together."""
    *events, done = [each.removeprefix("data: ") for each in text.removesuffix("\n\n").split("\n\n")]
    assert done == "[DONE]"
    *parts, last = [json.loads(each) for each in events]
    choices = [part["choices"][0] for part in parts]
    rows = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    return {
        "text": "".join(choice["text"] for choice in choices),
        "token_ids": [token for choice in choices for token in choice["token_ids"]],
        "finish_reason": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "logprobs": {key: [each for row in rows for each in row[key]] for key in (rows[0] if rows else ())},
        "usage": last["usage"],
    }


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "likely": {"logprobs": 3},
    "own only": {"logprobs": 0},
    "seeded": {"temperature": 1, "seed": 9, "logprobs": 1},
    "echoed": {"echo": True},
    "several": {"n": 3, "temperature": 1, "seed": 4},
    "two prompts": {"prompt": [PROMPT, PROMPT[1:]]},
}


@pytest.mark.parametrize(
    ("kind", "stream"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in ("plain", "likely", "own only", "echoed"))],
)
def test_an_answer_is_the_same_wherever_it_is_cut(kind: str, stream: bool) -> None:
    fields = KINDS[kind]
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    async def test(ask: Ask, cluster: LocalCluster) -> None:
        whole = await ask(None, **fields, **more)
        for cut in CUTS:
            assert await ask(cut, **fields, **more) == whole, cut
        assert whole["usage"]["completion_tokens"] == OSL * len(whole.get("choices", [1]))

    serving(test)


def test_a_stop_string_is_found_and_counted_alike_wherever_the_cut_falls_in_it() -> None:
    async def test(ask: Ask, cluster: LocalCluster) -> None:
        said = (await ask(None))["choices"][0]["text"]
        assert "\ufffd" in said or any(ord(character) > 127 for character in said)
        for begin in range(len(said) // 3, len(said) - 6, 5):
            fields = {"stop": [said[begin : begin + 5]], "logprobs": 1}
            whole = await ask(None, **fields)
            choice = whole["choices"][0]
            assert choice["finish_reason"] == "stop" and choice["text"] == said[: said.index(fields["stop"][0])]
            count = whole["usage"]["completion_tokens"]
            assert count == len(choice["token_ids"]) == len(choice["logprobs"]["tokens"]) <= OSL
            for cut in range(67, 67 + count):
                assert await ask(cut, **fields) == whole, cut

    serving(test)


def test_logprobs_of_every_token_come_once_over_a_migration_and_a_lost_worker() -> None:
    async def test(ask: Ask, cluster: LocalCluster) -> None:
        fields = {"max_tokens": 400, "logprobs": 2, "ignore_eos": True}
        whole = await ask(None, **fields)
        person = cluster.broker.connect("person")

        asked = asyncio.ensure_future(ask(69, **fields))
        await asyncio.sleep(0.5)
        cluster.kill_worker("w3")
        await cluster.add_worker("w3", "decode")
        assert await asked == whole
        asked = asyncio.ensure_future(ask(69, **fields))
        await asyncio.sleep(0.4)
        wish = RolesRequest(action="set", worker_id="w3", role="prefill", drain="migrate", timeout_s=20.0)
        await person.request(ROLES.at(), wish, (RolesReply,), 21.0)
        assert await asked == whole
        assert cluster.gateway.fleet.workers["w4"].sent  # it went on there

    serving(test)


def test_a_single_token_needs_no_decode_worker() -> None:
    from dopd.policy.simple import SIMPLE

    async def main() -> None:
        runtime = VirtualRuntime(0)
        cluster = LocalCluster(runtime, policy=SIMPLE, latency_s=2e-4)
        await cluster.start()
        api = TextGateway(cluster.gateway, Folded(), runtime, Slo(), 60.0)
        await asyncio.sleep(1.0)
        for worker_id in ("w3", "w4"):
            cluster.engines[worker_id].stall(3600.0)
        transport = httpx.ASGITransport(app=create_app(api, 1 << 20))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:
            answer = await client.post("/v1/completions", json={**BODY, "max_tokens": 1})
        assert answer.json()["usage"]["completion_tokens"] == 1
        assert not any(cluster.workers[w]._accounts["g1"].received for w in ("w3", "w4"))
        await cluster.stop()

    run_virtual(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_all_its_kv(stream: bool) -> None:
    async def test(ask: Ask, cluster: LocalCluster) -> None:
        used = lambda: sum(engine._core.pool.used for engine in cluster.engines.values())  # noqa: E731
        for after_s in (0.001, 0.01, 0.05, 0.2, 0.6):
            for cut in (None, 40, 67, 80):
                asked = asyncio.ensure_future(ask(cut, max_tokens=300, n=2, stream=stream))
                await asyncio.sleep(after_s)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                await asyncio.sleep(0.1)
                assert (used(), [engine.load().running for engine in cluster.engines.values()]) == (0, [0, 0, 0, 0])
        assert not cluster.gateway._requests

    serving(test)
