"""curl, plain and streamed, against a running cluster."""

import json
import shutil
import subprocess

import pytest

from tests.e2e.clients.conftest import Cluster, decoded
from tests.e2e.clients.truth import answer_to, reply_to

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on PATH"),
]
JSON = ("-H", "Content-Type: application/json", "-H", "Authorization: Bearer curl")


def curl(*words: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", "60", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def events_of(text: str) -> list[dict[str, object]]:
    """Server-sent events, the end mark checked."""
    *events, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_it_completes_plain_and_streamed(cluster: Cluster) -> None:
    ask = {"model": cluster.model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    plain = decoded(curl(f"{cluster.v1}/completions", *JSON, "-d", json.dumps(ask)))
    assert plain["choices"][0]["text"] == answer_to("Once upon a time", 8)
    streamed = curl("-N", f"{cluster.v1}/completions", *JSON, "-d", json.dumps({**ask, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in events_of(streamed)) == plain["choices"][0]["text"]


def test_it_chats_plain_and_streamed(cluster: Cluster) -> None:
    ask = {
        "model": cluster.model,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    plain = decoded(curl(f"{cluster.v1}/chat/completions", *JSON, "-d", json.dumps(ask)))
    assert plain["choices"][0]["message"]["content"] == reply_to("Tell me a story.", 8)
    streamed = curl("-N", f"{cluster.v1}/chat/completions", *JSON, "-d", json.dumps({**ask, "stream": True}))
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(streamed))
    assert text == plain["choices"][0]["message"]["content"]


def test_text_becomes_token_ids_and_text_again(cluster: Cluster) -> None:
    text = answer_to([5, 6, 7], 8).strip()
    said = decoded(curl(f"{cluster.url}/tokenize", *JSON, "-d", json.dumps({"model": cluster.model, "prompt": text})))
    assert said["count"] == 8
    ask = {"model": cluster.model, "tokens": said["tokens"]}
    assert decoded(curl(f"{cluster.url}/detokenize", *JSON, "-d", json.dumps(ask))) == {"prompt": text}


def test_an_error_has_its_status_and_says_what_is_wrong(cluster: Cluster) -> None:
    text = curl("-w", "\n%{http_code}", f"{cluster.v1}/completions", *JSON, "-d", '{"model": "emulated"')
    body, _, status = text.rpartition("\n")
    assert status == "400" and "not a JSON object" in decoded(body)["error"]["message"]


def test_a_large_body_that_waits_to_be_asked_for_is_answered(cluster: Cluster) -> None:
    """curl sends `Expect: 100-continue` with it."""
    ask = {"model": cluster.model, "prompt": "story " * 400_000, "max_tokens": 1}
    command = ["curl", "-sS", "--max-time", "60", f"{cluster.v1}/completions", *JSON, "-H", "Expect: 100-continue"]
    done = subprocess.run([*command, "-d", "@-"], input=json.dumps(ask), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "context is" in decoded(done.stdout)["error"]["message"]
