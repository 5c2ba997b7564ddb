"""Each bad request is refused with the error that says why, and the next good one is served: on a real socket, against
a gateway with the emulated engine's vocabulary."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from dopd.engine.sim.tokens import VOCABULARY
from dopd_gateway.http import create_app
from dopd_gateway.http_server import HttpServer
from dopd_gateway.number_tokenizer import NumberTokenizer
from tests.bad_http import CASES, CHAT, CONTEXT, JSON, TEXT, Case, json_of
from tests.text_side import ScriptedGateway, pieces, text_gateway

PARTS = 8
"""Cases share a server in so many tests: to start one for each would take the longest."""


@asynccontextmanager
async def served() -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedGateway]]:
    gateway = ScriptedGateway(pieces([5, 6]), max_model_len=CONTEXT)
    gateway.model = "emulated"
    app = create_app(text_gateway(gateway, NumberTokenizer(VOCABULARY)), 8 * 1024 * 1024)
    server = HttpServer(app, "127.0.0.1", 0, stop_timeout_s=1)
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        yield client, gateway
    await server.stop()


async def wrong(case: Case, client: httpx.AsyncClient) -> str:
    """What is wrong with the answer; empty when nothing is."""
    answer = await client.request(case.method, case.path, content=case.body, headers=dict(case.headers))
    if answer.status_code != case.status or answer.headers.get("content-type") != "application/json":
        return f"{answer.status_code} {answer.headers.get('content-type')}: {answer.text[:200]}"
    error = answer.json()["error"]
    if set(error) != {"message", "type", "param", "code"} or error["type"] != "invalid_request_error":
        return f"not OpenAI's shape: {error}"
    if (error["code"], error["param"]) != (case.code, case.param) or case.says not in error["message"]:
        return f"{error}"
    if not error["message"] or len(error["message"]) > 1000:
        return f"a message of {len(error['message'])} characters"
    good, path = (CHAT, "/v1/chat/completions") if "chat" in case.path else (TEXT, "/v1/completions")
    after = await client.post(path, content=json_of(good), headers=JSON)
    return "" if after.status_code == 200 else f"afterwards {after.status_code}: {after.text[:200]}"


@pytest.mark.parametrize("part", range(PARTS))
async def test_a_bad_request_is_refused_with_its_reason_and_the_next_is_served(part: int) -> None:
    async with served() as (client, gateway):
        cases = CASES[part::PARTS]
        found = {case.name: text for case in cases if (text := await wrong(case, client))}
        assert not found, "\n".join(f"{name} -> {text}" for name, text in found.items())
        assert len(gateway.streams) == len(cases)  # the good ones


def test_there_are_enough_cases_and_each_has_a_name() -> None:
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)
