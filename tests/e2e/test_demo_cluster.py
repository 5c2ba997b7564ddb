"""`dopd up --demo` as a person runs it: real services, a real broker, emulated engines."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dopd.supervisor import http
from tests.e2e.running import ROOT, Running, wait_until
from tests.e2e.terminal import Terminal
from tests.nats_server import server_binary
from tests.otlp_sink import Sink

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
NAMES = {"supervisor", "nats", "store", "gateway", "forecaster", "planner", "w1", "w2", "w3", "w4"}


def demo(folder: Path, *words: str, **env: str) -> Running:
    server_binary()
    settings = {
        "DOPD__CLUSTER__STATE_DIR": str(folder),
        "DOPD__GATEWAY__PORT": "0",
        **env,
    }
    return Running(["dopd.cli", "up", "--demo", *words], folder, settings)


def dopd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DOPD__CLUSTER__STATE_DIR": str(folder)}
    command = [sys.executable, "-m", "dopd.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=False)


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    running = Sink()
    yield running
    running.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> Iterator[Running]:
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with demo(tmp_path_factory.mktemp("demo"), "--no-load", **traced) as up:
        up.wait_for("Ready after", 60.0)
        up.wait_for("Ctrl-C stops everything")
        print(next(line for line in up.output.splitlines() if line.startswith("Ready after")))
        yield up


def test_each_process_is_announced_and_runs(cluster: Running) -> None:
    assert set(cluster.note()) == NAMES
    for name in NAMES - {"supervisor"}:
        assert any(name in line and "ready in" in line for line in cluster.output.splitlines())


async def test_the_printed_curl_line_gets_an_answer_of_the_emulated_model(cluster: Running) -> None:
    line = next(line for line in cluster.output.splitlines() if line.strip().startswith("curl "))
    _, url, _, _, _, body = shlex.split(line)
    async with http.request(url, body.encode()) as response:
        answer = json.loads(await response.body())
    assert response.status == 200
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["model"] == json.loads(body)["model"]


def test_roles_are_shown_changed_refused_and_left_to_the_planner_again(cluster: Running) -> None:
    folder = cluster.state.root
    shown = dopd(folder, "roles")
    *table, total = shown.stdout.splitlines()[1:]
    assert total == "4 workers, 4 GPUs"
    assert [line.split()[:2] for line in table] == [
        ["w1", "prefill"],
        ["w2", "prefill"],
        ["w3", "decode"],
        ["w4", "decode"],
    ]
    changed = dopd(folder, "roles", "set", "w3", "prefill")
    assert changed.returncode == 0
    assert "w3 takes prefill work after" in changed.stdout
    refused = dopd(folder, "roles", "set", "w4", "prefill")
    assert refused.returncode == 1
    assert "would leave no decode worker" in refused.stderr
    back = dopd(folder, "roles", "set", "w3", "decode", "--until", "drained")
    assert "drained after" in back.stdout
    for worker in ("w3", "w4"):
        assert dopd(folder, "roles", "unpin", worker).returncode == 0


def test_status_shows_where_each_service_has_its_metrics_and_they_are_there(cluster: Running) -> None:
    rows = {line.split()[0]: line.split()[-1] for line in dopd(cluster.state.root, "status").stdout.splitlines()}
    services = NAMES - {"supervisor", "nats"}
    assert {name for name, url in rows.items() if url.endswith("/metrics")} == services
    pages = {name: httpx.get(rows[name], timeout=10.0).text for name in services}
    assert all(f'dopd_build_info{{service="{name}"' in pages[name] for name in ("w1", "gateway", "forecaster"))
    assert all("process_resident_memory_bytes" in page for page in pages.values())
    assert 'dopd_worker_role{role="prefill"} 1.0' in pages["w1"]
    assert 'dopd_workers{phase="serving",role="decode"} 2.0' in pages["gateway"]
    assert 'dopd_planner_workers{role="prefill"} 2.0' in pages["planner"]
    assert httpx.get(rows["w1"].replace("/metrics", "/health"), timeout=10.0).status_code == 200


def test_top_prints_one_frame_of_the_running_cluster(cluster: Running) -> None:
    shown = dopd(cluster.state.root, "top", "--once", "--listen", "3")
    assert shown.returncode == 0, shown.stderr
    assert "4 workers: 2 prefill, 2 decode" in shown.stdout
    for name in ("w1", "w2", "w3", "w4"):
        assert any(line.split()[:3:2] == [name, "serving"] for line in shown.stdout.splitlines()), shown.stdout
    assert "last decision" in shown.stdout and "1 gateway" in shown.stdout
    assert shown.stderr == ""


def test_top_follows_the_size_of_its_terminal_and_ends_with_ctrl_c(cluster: Running) -> None:
    env = {**os.environ, "DOPD__CLUSTER__STATE_DIR": str(cluster.state.root), "TERM": "xterm"}
    command = [sys.executable, "-m", "dopd.cli", "top", "--every", "0.1"]
    with Terminal(command, env, lines=24, columns=80) as top:
        top.wait_for(lambda text: "steps/s" in text and "w4" in text)
        assert "misses" not in top.text
        top.resize(lines=50, columns=140)
        top.wait_for(lambda text: "misses" in text)
        top.process.send_signal(signal.SIGINT)
        assert top.process.wait(10.0) == 0
        top.wait_for(lambda text: "\x1b[?1049l" in text)  # the other screen is back


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/nats-api.md").read_text(), re.DOTALL)
PRINTED = (
    r"Completion\(request_id='.+', model='emulated', finish_reason='length', .*completion_tokens=16",
    r"\w+( \w+)+\nlength Usage\(prompt_tokens=\d+, completion_tokens=16\)",
    r"'type': 'Completion', .*'completion_tokens': 4",
    r"404 model_not_found model .*emulated",
    r"(g1-\w+ (generate|chat|models) dopd\.v1\.\w+ \d*\n?){6}",
)


def test_every_example_of_the_document_on_nats_runs_and_prints_what_it_should(cluster: Running) -> None:
    url = json.loads(cluster.state.config_file.read_text())["cluster"]["nats_url"]
    assert len(EXAMPLES) == len(PRINTED)
    for code, printed in zip(EXAMPLES, PRINTED, strict=True):
        command = [sys.executable, "-c", code]
        env = {**os.environ, "NATS_URL": url}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), code
        assert re.search(printed, done.stdout), (code, done.stdout)


def test_no_process_of_the_demo_has_loaded_torch(cluster: Running) -> None:
    for name, process in cluster.note().items():
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps, name


def test_a_killed_worker_comes_back_under_its_name(cluster: Running) -> None:
    before = cluster.note()["w1"].pid
    os.kill(before, signal.SIGKILL)
    cluster.wait_for("w1          ready again", 30.0)
    assert cluster.note()["w1"].pid != before


def test_a_second_up_says_that_one_is_running(cluster: Running) -> None:
    with demo(cluster.state.root, "--no-load") as second:
        assert second.code() == 1
        assert f"already running here (pid {cluster.process.pid}" in second.output


def test_every_service_has_sent_its_spans_to_the_collector(cluster: Running, sink: Sink) -> None:
    line = next(line for line in cluster.output.splitlines() if line.strip().startswith("curl "))
    _, url, _, _, _, body = shlex.split(line)
    assert httpx.post(url, content=body, timeout=30.0).status_code == 200
    for role in ("prefill", "decode"):
        assert dopd(cluster.state.root, "roles", "set", "w3", role, "--until", "drained").returncode == 0
    assert dopd(cluster.state.root, "roles", "unpin", "w3").returncode == 0
    services = {"gateway", "forecaster", "ratio-planner", "decode-worker"}
    assert wait_until(lambda: services <= {about["service.name"] for about in sink.resources}), sink.resources
    spans = {"completion", "prefilling", "arrivals", "forecast", "decision", "accepting", "drained"}
    assert wait_until(lambda: spans <= {span.name for span in sink.spans}), {span.name for span in sink.spans}


def test_every_service_has_written_json_and_nothing_else(cluster: Running) -> None:
    for name in NAMES - {"supervisor", "nats"}:
        lines = (cluster.state.logs / f"{name}.log").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        assert events and all(event["service"] and event["level"] and event["timestamp"] for event in events), name
        assert any(event["event"] == "service_started" for event in events), name


def test_ctrl_c_leaves_no_process(cluster: Running) -> None:
    """The last one that uses the cluster."""
    cluster.note()
    cluster.interrupt()
    assert cluster.code(60.0) == 0
    assert cluster.left() == []


def test_the_load_shows_a_status_line_and_sigkill_of_the_supervisor_leaves_no_process(tmp_path: Path) -> None:
    with demo(tmp_path, DOPD__WORKLOAD__REQUESTS_PER_S="5") as up:
        up.wait_for("requests/s  TTFT p50", 60.0)
        line = next(line for line in up.output.splitlines() if "requests/s  TTFT p50" in line)
        assert "roles w1:P w2:P w3:D w4:D" in line
        assert "failed" not in line
        up.note()
        up.process.kill()
        up.code()
        assert wait_until(lambda: up.left() == [], 5.0), up.left()
