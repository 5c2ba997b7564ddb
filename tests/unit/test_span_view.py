"""Spans in files and back: what a process writes, and what a viewer is shown of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from dopd.cli import main
from dopd.obs.telemetry import Begun, Span, Stretch, Tracing, begin
from dopd_loadgen.collector import collector, send_client_spans
from tests.load_runs import answer, run_of


def a_round(folder: Path, monkeypatch: pytest.MonkeyPatch, error: str = "") -> list[Span]:
    """A window, a decision and its command, of two processes; beside it a request in a trace of its own."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"file:{folder}")
    gateway, planner = (Tracing.from_environment(name, f"{name}1", lambda: 0.0) for name in ("gateway", "planner"))
    assert gateway is not None and planner is not None
    window = begin(gateway, Begun("arrivals", 10.0, {"dopd.requests": 4, "dopd.share": 0.5}))
    window.end(20.0)
    decision = begin(planner, Begun("decision", 20.5), window.traceparent, [window.traceparent])
    decision.end(20.5)
    command = begin(planner, Begun("command", 20.5, {"dopd.worker_id": "w1"}), decision.traceparent)
    command.end(30.0, error)
    gateway.record(Stretch("completion", 11.0, 12.0), [Stretch("queued", 11.0, 11.5)])
    for tracing in (gateway, planner):
        tracing._provider.shutdown()
    return [window, decision, command]


def shown(folder: Path, *more: str) -> list[dict[str, Any]]:
    out = folder / "out.json"
    assert main(["spans", str(folder), "-o", str(out), *more]) == 0
    events: list[dict[str, Any]] = json.loads(out.read_text())["traceEvents"]
    return events


def slices(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {event["name"]: event for event in events if event["ph"] == "X"}


def test_each_process_is_shown_with_its_spans_and_arrows_to_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, *_ = a_round(tmp_path, monkeypatch)
    events = shown(tmp_path)
    names = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    assert set(names) == {"gateway gateway1", "planner planner1"}
    found = slices(events)
    assert found.keys() == {"arrivals", "decision", "command", "completion", "queued"}
    assert (found["arrivals"]["ts"], found["arrivals"]["dur"]) == (0.0, 10e6)
    assert found["decision"]["dur"] == 1.0, "what took no time can be seen all the same"
    assert found["command"]["args"]["dopd.worker_id"] == "w1"
    assert found["arrivals"]["args"] | {"dopd.requests": "4", "dopd.share": 0.5} == found["arrivals"]["args"]
    assert found["arrivals"]["args"]["trace_id"] == window.traceparent.split("-")[1]
    assert found["completion"]["tid"] != found["arrivals"]["tid"], "they overlap"
    arrows = [(e["ph"], e["pid"], e["ts"]) for e in events if e["ph"] in "sf"]
    assert len(arrows) == 6
    assert ("s", names["gateway gateway1"], 10e6) in arrows and ("f", names["planner planner1"], 10.5e6) in arrows


def test_traces_are_chosen_by_a_span_that_they_have_or_by_their_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, *_ = a_round(tmp_path, monkeypatch)
    assert slices(shown(tmp_path, "--with", "command")).keys() == {"arrivals", "decision", "command"}
    assert slices(shown(tmp_path, "--with", "completion")).keys() == {"completion", "queued"}
    assert len(slices(shown(tmp_path, "--trace", window.traceparent.split("-")[1][:12]))) == 3


def test_what_went_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_round(tmp_path, monkeypatch, error="timed_out")
    assert slices(shown(tmp_path))["command"]["args"]["message"] == "timed_out"


def test_the_load_generator_writes_its_spans_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_round(tmp_path, monkeypatch)
    send_client_spans(run_of([answer(0, 1.0, [1.5, 1.6])]), collector())
    assert "request" in slices(shown(tmp_path))


def test_a_folder_that_cannot_be_written_costs_the_spans_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    a_round(file, monkeypatch)
    assert file.read_text() == ""


@pytest.mark.parametrize(
    ("content", "part"), [("", "has no spans"), ("{}\n", "a.jsonl:1"), ("nonsense\n", "a.jsonl:1"), (None, "cannot")]
)
def test_what_is_no_file_of_spans_is_refused(
    tmp_path: Path, content: str | None, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    assert main(["spans", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "out.json")]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
