"""The load generator drives a stock vLLM server, and counts each of its tokens."""

import json
from pathlib import Path

import pytest

from dopd_loadgen.cli import main
from tests.e2e.vllm.bare import bare_vllm

pytestmark = pytest.mark.timeout(600)


def test_bare_vllm_is_driven_and_every_token_is_counted(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    load = ["--arrivals", "poisson:rate=3", "--isl", "lognormal:mean=120,p50=90", "--osl", "24", "--duration", "8"]
    with bare_vllm(model, tmp_path / "vllm.log") as url:
        flags = ["--url", url, "--quiet", "--result-dir", str(out)]
        code = main(["run", *flags, *load, "--tokenizer", str(model)])
    assert code == 0
    records = [json.loads(line)["dopd"] for line in (out / "requests.jsonl").read_text().splitlines()]
    assert len(records) > 10
    assert {r["failure"] for r in records} == {""}
    assert all(sum(r["counts"]) == r["osl_tokens"] == 24 for r in records)
    # Prompts are text here: the server's own count shows that they have exactly the wanted length.
    assert [r["prompt_tokens"] for r in records] == [r["isl_tokens"] for r in records]
