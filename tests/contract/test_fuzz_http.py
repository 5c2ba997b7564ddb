"""Bodies that schemathesis makes from our OpenAPI document: valid and invalid ones. `FUZZ_CASES=100000` for many."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import given
from schemathesis import Case, GenerationMode

from dopd_gateway.http import create_app
from dopd_gateway.openapi import document
from tests.bad_http import CHAT, TEXT
from tests.fuzz_rig import CASES, answering, fuzzed

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
EACH = CASES // (len(PATHS) * len(GenerationMode)) or 40


class Server:
    """The app in this process, and a loop to ask it in."""

    def __init__(self, runner: asyncio.Runner) -> None:
        _, self.api = answering()
        app = create_app(self.api, 8 * 1024 * 1024)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30)
        self._runner = runner

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **how))

    def send(self, case: Case) -> httpx.Response:
        made = case.as_transport_kwargs(base_url="http://gateway")
        names = {"headers": "headers", "params": "params", "json": "json", "data": "content"}
        how = {ours: made[theirs] for theirs, ours in names.items() if made.get(theirs) is not None}
        return self.ask(made["method"], made["url"], **how)

    def serves(self) -> bool:
        answers = [
            self.ask("POST", "/v1/completions", json=TEXT), self.ask("POST", "/v1/chat/completions", json=CHAT)
        ]  # fmt: skip
        return all(answer.status_code == 200 for answer in answers)


@pytest.fixture
def server() -> Iterator[Server]:
    with asyncio.Runner() as runner:
        yield Server(runner)


@pytest.mark.timeout(0 if CASES else 120)
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS)
def test_what_keeps_to_the_document_is_understood_and_what_does_not_is_refused(
    server: Server, path: str, mode: GenerationMode
) -> None:
    api = document("emulated")
    schema, answers = schemathesis.openapi.from_dict(api), api["paths"][path]["post"]["responses"]
    error = {**api["components"]["schemas"]["Error"]}
    seen: Counter[int] = Counter()

    @fuzzed(EACH)
    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    def each(case: Case) -> None:
        answer = server.send(case)
        seen[answer.status_code] += 1
        assert str(answer.status_code) in answers and answer.status_code < 500, answer.text
        if answer.status_code == 200:
            assert mode is GenerationMode.POSITIVE, f"served: {case.body!r:.500} {case.headers!r:.500}"
            assert answer.headers["content-type"].partition(";")[0] in answers["200"]["content"]
            assert "[DONE]" in answer.text or isinstance(json.loads(answer.text), dict)
        else:
            jsonschema.validate(answer.json(), error)
            assert len(answer.json()["error"]["message"]) < 1000

    each()
    print(f"{path} {mode.value}: {dict(seen)}")
    assert server.serves()
    # Valid bodies may still ask for what cannot be, such as more tokens than the context has.
    assert bool(seen[200]) == (mode is GenerationMode.POSITIVE)
