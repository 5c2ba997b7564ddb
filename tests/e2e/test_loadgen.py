"""`dopd-loadgen run` against the emulated system: HTTP and NATS agree, traces go all the way, Ctrl-C still reports."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dopd import config as configs
from dopd.supervisor.stack import gateway_url
from tests.e2e.live import demo
from tests.e2e.running import ROOT, Running

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
LOAD = ["--arrivals", "poisson:rate=6", "--isl", "lognormal:mean=600,p50=400", "--osl", "40", "--duration", "12"]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with demo(tmp_path_factory.mktemp("load")) as running:
        running.wait_for("Ctrl-C stops everything", 60.0)
        yield running


def targets(up: Running) -> dict[str, list[str]]:
    """The flags that send the same load to either API."""
    config = configs.load(up.state.config_file, env={})
    # Prompts of its own, or it would find those of the run before in the KV store.
    nats = ["--nats", config.cluster.broker_url, "--model", configs.served_name(config.engine), "--prompt-seed", "1"]
    return {"http": ["--url", gateway_url(config)], "nats": nats}


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dopd_loadgen.cli", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


def run(*words: str) -> str:
    process = start(*words)
    try:
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return json.loads((folder / "result.json").read_text()), [json.loads(line)["dopd"] for line in lines]


def test_over_http_and_over_nats_the_same_load_gives_the_same_figures(up: Running, tmp_path: Path) -> None:
    found = {}
    for name, flags in targets(up).items():
        out = tmp_path / name
        print(run("run", *flags, *LOAD, "--quiet", "--result-dir", str(out), "--traces-out", str(out / "spans.json")))
        found[name] = read(out)
    (http, http_records), (nats, nats_records) = found["http"], found["nats"]
    for key in ("completed", "failed", "total_input_tokens", "total_output_tokens"):
        assert http[key] == nats[key], key
    assert http["failed"] == 0 and http["completed"] > 40
    assert [r["prompt_tokens"] for r in http_records] == [r["isl_tokens"] for r in http_records]
    for one in (http, nats):
        print({key: round(one[key], 1) for key in ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms")})
        assert one["dopd"]["summary"]["figures"]["missing_tokens"] == 0
    for records in (http_records, nats_records):
        names = {phase[0] for record in records for phase in record["timeline"]}
        assert {"queued", "prefilling", "kv_transfer", "decoding"} <= names


def test_several_client_processes_send_each_request_once(up: Running, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", *targets(up)["http"], *LOAD, "--processes", "2", "--quiet", "--result-dir", str(out))
    found, records = read(out)
    assert found["failed"] == 0
    assert [r["index"] for r in records] == list(range(len(records)))
    ids = {r["request_id"] for r in records}
    assert len(ids) == len(records)


def test_ctrl_c_ends_the_run_and_reports_what_was_done(up: Running, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["run", *targets(up)["http"], *LOAD[:-1], "60", "--result-dir", str(out)]
    process = start(*words)
    try:
        time.sleep(6.0)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    found, records = read(out)
    assert "Interrupted" in output
    assert 0 < found["completed"] < len(records)
    assert {r["failure"] for r in records} >= {"", "unsent"}
