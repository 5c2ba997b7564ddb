"""API keys on the gateway's HTTP port, on a real socket: who gets in, what he is told, and who pays."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dopd.config import HttpConfig
from dopd_gateway.gate import OPEN
from dopd_gateway.http import create_app
from dopd_gateway.http_server import HttpServer
from dopd_gateway.keys import LOOK_EVERY_S, VARIABLE, Keys, line_of, new_key
from dopd_gateway.openapi import document
from dopd_gateway.rate import Limit, Rates
from tests.integration.test_http_connections import Client
from tests.text_side import MODEL, ScriptedGateway, ids_of, pieces, text_gateway

BODY = {"model": MODEL, "prompt": "The quick", "max_tokens": 5}
LIMIT_BYTES = 64 * 1024
LIMIT_S = 10.0
Test = Callable[[httpx.AsyncClient, ScriptedGateway], Any]


def scripted() -> ScriptedGateway:
    return ScriptedGateway(pieces(ids_of(" brown fox")))


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Served:
    """A gateway's HTTP port with keys of a file, on a clock that the test turns."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys"
        self.alice, self.bob, self.carol = new_key(), new_key(), new_key()
        own = Limit(0.001, 1)
        self.write(line_of("alice", self.alice), line_of("bob", self.bob, own))
        self.keys = Keys(str(self.file), {VARIABLE: f"carol:{self.carol}"})
        self.gateway, self.now_s = scripted(), 0.0
        self.url = ""

    def write(self, *lines: str) -> None:
        self.file.write_text("".join(f"{line}\n" for line in lines))

    def client(self, **how: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=LIMIT_S, **how)

    async def status(self, key: str, **body: Any) -> int:
        async with self.client(headers=bearing(key)) as client:
            return (await client.post("/v1/completions", json=BODY | body)).status_code

    async def raw(self) -> Client:
        host, port = self.url.removeprefix("http://").split(":")
        return Client(*await asyncio.open_connection(host, int(port)))


@asynccontextmanager
async def served(folder: Path, rates: Rates | None = None) -> AsyncIterator[Served]:
    ours = Served(folder)
    api = text_gateway(ours.gateway)
    api._rates = rates or Rates(0.001, 3, ours.keys.limit_of)
    api.now = lambda: ours.now_s  # type: ignore[method-assign]
    limits = HttpConfig(max_header_bytes=2048, body_timeout_s=60.0)
    server = HttpServer(create_app(api, LIMIT_BYTES, ours.keys), "127.0.0.1", 0, limits, stop_timeout_s=1)
    await server.start()
    ours.url = f"http://127.0.0.1:{server.port}"
    try:
        yield ours
    finally:
        await server.stop()


async def test_each_known_key_is_served_and_the_openai_client_knows_how(tmp_path: Path) -> None:
    async with served(tmp_path) as ours:
        assert [await ours.status(key) for key in (ours.alice, ours.bob, ours.carol)] == [200] * 3
        async with openai.AsyncOpenAI(api_key=ours.alice, base_url=f"{ours.url}/v1", max_retries=0) as client:
            assert (await client.completions.create(**BODY)).choices[0].text == " brown fox"
            assert [model.id async for model in client.models.list()] == [MODEL]
        async with openai.AsyncOpenAI(api_key=new_key(), base_url=f"{ours.url}/v1", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await client.completions.create(**BODY)
        assert refused.value.code == "invalid_api_key"


PATHS = [(method.upper(), path) for path, methods in document(MODEL)["paths"].items() for method in methods]


@pytest.mark.parametrize(
    ("method", "path"), [*PATHS, ("GET", f"/v1/models/{MODEL}"), ("GET", "/nowhere"), ("PUT", "/v1/models")]
)
async def test_without_a_known_key_every_path_but_health_and_ready_is_a_401(
    tmp_path: Path, method: str, path: str
) -> None:
    async with served(tmp_path) as ours, ours.client() as client:
        wrong = {
            "none": {},
            "empty": {"authorization": ""},
            "bearer alone": {"authorization": "Bearer"},
            "unknown": bearing(new_key()),
            "name": bearing("alice"),
            "hash": bearing(ours.file.read_text().split()[3]),
            "line": bearing(ours.file.read_text().splitlines()[0]),
            "longer": bearing(ours.alice + "x"),
            "basic": {"authorization": f"Basic {ours.alice}"},
            "elsewhere": {"x-api-key": ours.alice, "api-key": ours.alice},
            "cookie": {"cookie": f"key={ours.alice}"},
        }
        for what, headers in wrong.items():
            answer = await client.request(method, path, headers=headers, json=BODY if method == "POST" else None)
            if path in OPEN:
                assert answer.status_code == 200, what
                continue
            assert answer.status_code == 401, what
            assert answer.headers["www-authenticate"] == "Bearer"
            error = answer.json()["error"]
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
            assert not any(word in answer.text for word in _long_words(headers)), what
        as_query = await client.request(method, f"{path}?api_key={ours.alice}&key={ours.alice}")
        assert as_query.status_code == (200 if path in OPEN else 401)
    assert ours.gateway.inbounds == []


def _long_words(headers: dict[str, str]) -> list[str]:
    return [word for word in " ".join(headers.values()).split() if len(word) > 12]


async def test_a_path_that_only_looks_open_is_not(tmp_path: Path) -> None:
    async with served(tmp_path) as ours:
        for path in (
            "/health/",
            "//health",
            "/health/../v1/models",
            "/v1/models/../../health",
            "/%68ealth/x",
            "/ready?x",
            "/READY",
        ):
            client = await ours.raw()
            await client.send(f"GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
            assert (await client.answer())[0] == (200 if path == "/ready?x" else 401), path
            client.writer.close()


async def test_a_bad_key_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    async with served(tmp_path) as ours:
        client = await ours.raw()
        head = ["POST /v1/completions HTTP/1.1", "Host: gateway", "Authorization: Bearer wrong", "Expect: 100-continue"]
        await client.send("\r\n".join([*head, "Content-Length: 60000", "", ""]).encode())
        status, _, body = await client.answer()
        assert (status, body["error"]["code"]) == (401, "invalid_api_key"), "and no 100 Continue before"
        client.writer.close()


async def test_sizes_are_bounded_with_a_key_and_without_one(tmp_path: Path) -> None:
    async with served(tmp_path) as ours, ours.client() as client:
        large = "x" * (LIMIT_BYTES + 1)
        assert (await client.post("/v1/completions", content=large, headers=bearing(ours.alice))).status_code == 413
        assert (await client.post("/v1/completions", content=large)).status_code == 401
        assert (await client.get("/health", headers={"x": "y" * 3000})).status_code == 431
        assert (await client.get("/v1/models", headers=bearing("y" * 3000))).status_code == 431
        assert (await client.get("/v1/models", headers=bearing("y" * 1000))).status_code == 401


async def test_a_rate_counts_by_name_and_a_name_may_have_its_own(tmp_path: Path) -> None:
    second = new_key()
    async with served(tmp_path) as ours:
        ours.write(line_of("alice", ours.alice), line_of("alice", second), line_of("bob", ours.bob, Limit(0.001, 1)))
        ours.now_s += LOOK_EVERY_S
        assert [await ours.status(key) for key in (ours.alice, second, ours.alice, second)] == [200, 200, 200, 429]
        assert [await ours.status(ours.bob) for _ in range(2)] == [200, 429]
        assert [await ours.status(ours.carol) for _ in range(4)] == [200, 200, 200, 429]
        assert [await ours.status(new_key()) for _ in range(4)] == [401] * 4, "unknown keys have no rate"


async def test_a_key_that_is_taken_out_of_the_file_works_no_more_and_a_new_one_does(tmp_path: Path) -> None:
    new = new_key()
    async with served(tmp_path) as ours:
        assert [await ours.status(key) for key in (ours.alice, new)] == [200, 401]
        ours.write(line_of("dave", new))
        os.utime(ours.file, ns=(1, 1))
        ours.now_s += LOOK_EVERY_S
        assert [await ours.status(key) for key in (ours.alice, new)] == [401, 200]


async def test_refused_keys_are_counted_as_failures_and_appear_nowhere(tmp_path: Path) -> None:
    ours = Served(tmp_path)
    app = create_app(text_gateway(ours.gateway), LIMIT_BYTES, ours.keys)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for _ in range(3):
            await client.get("/v1/models", headers=bearing("sekrit"))
    assert dict(app.state.failures) == {"invalid_api_key": 3}


async def test_without_keys_everybody_is_served_as_before(tmp_path: Path) -> None:
    transport = httpx.ASGITransport(app=create_app(text_gateway(scripted()), LIMIT_BYTES, Keys("", {})))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200
        assert (await client.post("/v1/completions", json=BODY, headers=bearing("any"))).status_code == 200
