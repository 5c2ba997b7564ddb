"""An emulated cluster under the shipped users, over TLS and with API keys: it serves, decides, and tells no secret."""

import io
import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nats
import pytest
from nats.aio.client import Client

from dopd import cli
from dopd_gateway.keys import VARIABLE, line_of, new_key
from dopd_proto.asked import ModelsReply, ModelsRequest
from dopd_proto.codec import decode, encode
from dopd_proto.request import Completion, Failure, Generate
from tests.e2e.running import ROOT, wait_until
from tests.secured import SERVICES, SecuredBroker, Services, make_certificates, services, tls_broker

BODY = {"model": "emulated", "prompt": "once upon a time", "max_tokens": 8}
LIMIT_S = 20.0
KEYS = {"alice": new_key(), "carol": new_key()}


@dataclass
class Secured:
    """A cluster that runs, what was asked of it, and the answers."""

    broker: SecuredBroker
    running: Services
    ca: Path
    spans: Path
    said: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.running.http_port}"

    def ready(self) -> bool:
        """Whether the gateway says so."""
        try:
            return self.http("/ready")[0] == 200
        except urllib.error.URLError:
            return False

    def http(self, path: str, key: str = "", body: Any = None) -> tuple[int, str]:
        """Status and body."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=LIMIT_S) as got:
                return got.status, got.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def operator(self, *command: str) -> str:
        """What `dopd …` says, for a person with the operator's password."""
        env = {"DOPD__CLUSTER__NATS_URL": self.broker.url_of("operator"), "DOPD__CLUSTER__NATS_CA_FILE": str(self.ca)}
        out = io.StringIO()
        with patch.dict(os.environ, env), redirect_stdout(out), redirect_stderr(out):
            code = cli.main(command)
        self.said[" ".join(command)] = out.getvalue()
        assert code == 0, out.getvalue()
        return out.getvalue()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    ca = make_certificates(folder / "tls")
    (folder / "nats").mkdir()
    broker = tls_broker(folder / "nats", ca.parent)
    broker.start()
    (folder / "keys").write_text(line_of("alice", KEYS["alice"]) + "\n")
    env = {
        "DOPD__CLUSTER__NATS_CA_FILE": str(ca),
        "DOPD__GATEWAY__API_KEYS_FILE": str(folder / "keys"),
        "DOPD__LOG__LEVEL": "debug",
        "DOPD__GATEWAY__WINDOW_S": "1.0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"file:{folder / 'spans'}",
        VARIABLE: f"carol:{KEYS['carol']}",
    }
    try:
        with services(folder / "services", broker, env) as running:
            cluster = Secured(broker, running, ca, folder / "spans")
            assert wait_until(cluster.ready, 60.0), running.log("gateway")
            yield cluster
    finally:
        broker.stop()


def test_http_requests_are_served_to_those_with_a_key(secured: Secured) -> None:
    for key in KEYS.values():
        status, text = secured.http("/v1/completions", key, BODY)
        assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 8
    streamed = secured.http("/v1/completions", KEYS["alice"], BODY | {"stream": True})[1]
    assert streamed.rstrip().endswith("data: [DONE]")
    for key in ("", new_key()):
        assert secured.http("/v1/completions", key, BODY)[0] == 401


async def test_nats_requests_are_served_to_the_client_user_and_a_key_that_is_sent_must_be_known(
    secured: Secured,
) -> None:
    """With the bare library, as docs/security.md has it."""
    client = await nats.connect(
        secured.broker.url_of("client"),
        tls=ssl.create_default_context(cafile=secured.ca),
        inbox_prefix="_INBOX.client",
    )
    try:
        told = await client.request("dopd.v1.models", encode(ModelsRequest()), timeout=LIMIT_S)
        assert [model.model for model in decode(told.data, (ModelsReply,)).models] == ["emulated"]
        found = json.loads((await client.request("$SRV.PING.dopd", b"", timeout=LIMIT_S)).data)
        assert found["name"] == "dopd"
        for headers in ({}, {"Authorization": f"Bearer {KEYS['alice']}"}):
            answer = await _generated(client, headers)
            assert isinstance(answer, Completion) and answer.usage.completion_tokens == 8
        refused = await _generated(client, {"Authorization": f"Bearer {new_key()}"})
        assert isinstance(refused, Failure) and (refused.status, refused.code) == (401, "invalid_api_key")
    finally:
        await client.close()


async def _generated(client: Client, headers: dict[str, str]) -> Completion | Failure:
    asked = encode(Generate(model="emulated", prompt="once upon a time", max_tokens=8))
    answer = await client.request("dopd.v1.generate", asked, timeout=LIMIT_S, headers=headers)
    return decode(answer.data, (Completion, Failure))


def test_an_operator_changes_a_role_and_the_decision_is_in_the_ledger(secured: Secured) -> None:
    assert "takes prefill work" in secured.operator("roles", "set", "w3", "prefill")
    rows = {line.split()[0]: line.split() for line in secured.operator("roles").splitlines() if line.startswith("w")}
    assert rows["w3"][1] == "prefill"
    assert wait_until(lambda: "w3" in secured.operator("decisions"))
    assert json.loads(secured.operator("decisions", "--json"))[-1]["changes"]
    assert "3 workers" in secured.operator("top", "--once")
    assert secured.http("/v1/completions", KEYS["alice"], BODY)[0] == 200, "it serves with the new roles"


def test_metrics_and_the_operators_pages_are_on_ports_of_their_own_and_never_on_the_public_one(
    secured: Secured,
) -> None:
    for name in SERVICES:
        with urllib.request.urlopen(f"{secured.running.operator_url(name)}/metrics", timeout=LIMIT_S) as page:
            assert b"process_" in page.read()
    for path in ("/metrics", "/live", "/live/events", "/admin", "/debug", "/"):
        assert secured.http(path)[0] == 401
        assert secured.http(path, KEYS["alice"])[0] == 404
    assert secured.running.operator_url("gateway") != secured.url


def test_no_secret_is_in_logs_spans_metrics_or_what_commands_say(secured: Secured) -> None:
    for key in (*KEYS.values(), wrong := new_key()):
        secured.http("/v1/completions", key, BODY)
        secured.http(f"/v1/models?api_key={key}", key)
    secured.operator("roles")
    assert wait_until(lambda: any(file.stat().st_size for file in secured.spans.glob("*"))), "no span was written"
    texts = {name: secured.running.log(name) for name in SERVICES} | {"broker": secured.broker.log} | secured.said
    texts |= {file.name: file.read_text() for file in secured.spans.glob("*")}
    for name in SERVICES:
        with urllib.request.urlopen(f"{secured.running.operator_url(name)}/metrics", timeout=LIMIT_S) as page:
            texts[f"{name}/metrics"] = page.read().decode()
    assert "request_ended" in texts["gateway"] and "service_started" in texts["w1"], "logs are there"
    secrets = {**secured.broker.passwords, **KEYS, "unknown key": wrong}
    for where, text in texts.items():
        for whose, secret in secrets.items():
            assert secret not in text, f"{where} has the secret of {whose}"


def test_the_broker_had_nothing_to_refuse(secured: Secured) -> None:
    secured.http("/v1/completions", KEYS["alice"], BODY)
    secured.operator("decisions")
    assert secured.broker.violations == []
    for name in SERVICES:
        assert "ermissions" not in secured.running.log(name)


def test_a_service_with_a_wrong_password_ends_and_says_why_without_it(secured: Secured, tmp_path: Path) -> None:
    env = {
        "DOPD__CLUSTER__NATS_URL": secured.broker.url_of("forecaster", "psekrit"),
        "DOPD__CLUSTER__NATS_CA_FILE": str(secured.ca),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "dopd_forecaster"],
        check=False, capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **env},
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "does not let in the user 'forecaster' with this password" in said
    assert "psekrit" not in said
