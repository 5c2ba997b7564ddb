"""The JavaScript client from npm, as its users use it, against a running cluster."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients.conftest import HERE, Cluster
from tests.e2e.clients.truth import answer_to

pytestmark = [pytest.mark.nats, pytest.mark.slow]


@pytest.fixture(scope="module")
def got(cluster: Cluster, node: tuple[str, Path]) -> dict[str, Any]:
    """What the script printed."""
    program, folder = node
    script = Path(shutil.copy(HERE / "openai_client.mjs", folder))  # node looks for packages beside the script
    command = [program, script.name, cluster.v1, cluster.model]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_lists_the_models(got: dict[str, Any], cluster: Cluster) -> None:
    assert got["models"] == [got["card"]] == [cluster.model]


def test_it_completes_plain_and_streamed(got: dict[str, Any]) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert got["completion"] == {"text": answer_to([5, 6, 7], 8), "finish": "length", "usage": usage}
    assert got["streamed"]["text"] == answer_to([5, 6, 7], 8) and got["streamed"]["finish"] == "length"
    assert got["streamed"]["events"] > 1


def test_it_chats_plain_streamed_and_by_its_helper(got: dict[str, Any]) -> None:
    assert got["chat"]["role"] == "assistant" and len(got["chat"]["text"].split()) == 8
    assert got["chat"]["text"] == got["chatStreamed"]["text"] == got["helper"]
    assert got["chat"]["usage"] == got["chatStreamed"]["usage"]
    assert got["chat"]["usage"]["completion_tokens"] == 8


def test_it_raises_its_own_errors(got: dict[str, Any]) -> None:
    assert got["errors"] == [
        {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        {"kind": "BadRequestError", "status": 400, "code": "invalid_request_error", "param": "temperature"},
        {"kind": "BadRequestError", "status": 400, "code": "invalid_request_error", "param": "no_such_field"},
    ]
