"""A run as trace files and as a breakdown: what is written can be read, nests, and adds up."""

import json
import random
from base64 import b64encode
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from dopd.errors import LoadError
from dopd_loadgen.breakdown import SECOND, TTFT
from dopd_loadgen.model import Phase, Record, Run
from dopd_loadgen.trace_ids import trace_of
from dopd_loadgen.tracing import breakdown, write_chrome_trace, write_otlp_json

ZERO_S = 1.7e9


def a_timeline(start_s: float) -> tuple[Phase, ...]:
    """A disaggregated request that arrives at `start_s` after the run's start; its gateway TTFT is 0.5 s."""
    at = ZERO_S + start_s
    steps = [
        ("queued", 0.1, "g1"), ("sent", 0.05, "g1"), ("prefill_queued", 0.05, "w1"), ("prefilling", 0.2, "w1"),
        ("handing_over", 0.05, "w1"), ("kv_transfer", 0.1, "w2"), ("decode_queued", 0.05, "w2"),
        ("first_decode_step", 0.03, "w2"), ("decoding", 0.3, "w2"), ("finished", 0.02, "w2"),
    ]  # fmt: skip
    phases = []
    for name, length_s, where in steps:
        phases.append(Phase(name, at, at + length_s, where))
        at += length_s
        if name == "prefilling":
            phases.append(Phase("first_token_sent", at, at + 0.1, where))
    return tuple(phases)


def a_record(index: int, intended_s: float, **more: Any) -> Record:
    record = Record(
        index, 100, 4, intended_s, sent_s=intended_s + 0.01, ended_s=intended_s + 1.2,
        times_s=[intended_s + 0.6, intended_s + 0.9, intended_s + 1.1], counts=[1, 1, 2], failure="",
        request_id=f"r-{index}", trace_id=f"{index + 1:032x}", timeline=a_timeline(intended_s + 0.02),
    )  # fmt: skip
    for name, value in more.items():
        setattr(record, name, value)
    return record


def a_run(*records: Record) -> Run:
    return Run("test", "http", "http://x", "m", 7, ZERO_S, 10.0, 12.0, 1.0, 0.1, list(records))


def chrome(run: Run, folder: Path) -> list[dict[str, Any]]:
    write_chrome_trace(run, folder / "trace.json")
    events: list[dict[str, Any]] = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return events


def otlp(run: Run, folder: Path) -> list[tuple[dict[str, str], Any]]:
    write_otlp_json(run, folder / "spans.json")
    read = json.loads((folder / "spans.json").read_text())
    for group in read["resourceSpans"]:
        for span in group["scopeSpans"][0]["spans"]:
            for key in {"traceId", "spanId", "parentSpanId"} & span.keys():  # hex in OTLP, base64 in protobuf's JSON
                span[key] = b64encode(bytes.fromhex(span[key])).decode()
    return [
        ({a.key: a.value.string_value for a in group.resource.attributes}, span)
        for group in ParseDict(read, TracesData()).resource_spans
        for span in group.scope_spans[0].spans
    ]


def random_run(seed: int) -> Run:
    rng = random.Random(f"{seed}/tracing")
    starts = [rng.uniform(0.0, 5.0) for _ in range(60)]
    return a_run(*(a_record(i, at, **({"timeline": ()} if rng.random() < 0.2 else {})) for i, at in enumerate(starts)))


@pytest.mark.parametrize("seed", range(5))
def test_slices_of_one_track_lie_apart_or_inside_each_other(tmp_path: Path, seed: int) -> None:
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in chrome(random_run(seed), tmp_path):
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], round(event["ts"] + event["dur"], 3)))
    assert len(tracks) > 8
    for slices in tracks.values():
        open_until: list[float] = []
        for start, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)


def test_a_process_per_place_with_as_many_tracks_as_requests_at_once(tmp_path: Path) -> None:
    events = chrome(a_run(a_record(0, 0.0), a_record(1, 0.1), a_record(2, 5.0)), tmp_path)
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(names.values()) == ["client", "g1", "w1", "w2"]
    clients = {e["args"]["index"]: e["tid"] for e in events if e.get("name") == "request" and e["ph"] == "X"}
    assert clients[0] != clients[1] and clients[2] == clients[0]
    one = [e for e in events if e["ph"] == "X" and e["args"]["index"] == 0]
    assert {e["args"]["trace_id"] for e in one} == {f"{1:032x}"} and {e["args"]["request_id"] for e in one} == {"r-0"}
    waiting = next(e for e in one if e["name"] == "waiting")
    assert (waiting["ts"], waiting["dur"]) == (10_000.0, 590_000.0)
    queued = next(e for e in one if e["name"] == "queued")
    assert queued["ts"] == pytest.approx(20_000.0, abs=1.0) and names[queued["pid"]] == "g1"


def test_each_requests_arrow_begins_at_the_client_and_touches_every_process(tmp_path: Path) -> None:
    events = chrome(a_run(a_record(0, 0.0), a_record(1, 0.1)), tmp_path)
    for index in (0, 1):
        flow = [e for e in events if e["ph"] in "st" and e["id"] == index]
        assert [e["ph"] for e in flow].count("s") == 1 and len({e["pid"] for e in flow}) == 4
        for e in flow:  # an arrow is drawn only from and to a slice
            around = [
                x for x in events
                if x["ph"] == "X" and (x["pid"], x["tid"]) == (e["pid"], e["tid"]) and x["args"]["index"] == index
            ]  # fmt: skip
            assert any(x["ts"] <= e["ts"] <= x["ts"] + x["dur"] for x in around)


def test_a_clock_that_lies_behind_does_not_make_negative_slices(tmp_path: Path) -> None:
    back = tuple(
        Phase(
            p.name, p.start_s - (9.0 if p.where == "w1" else 0.0), p.end_s - (9.0 if p.where == "w1" else 0.0), p.where
        )
        for p in a_timeline(0.0)
    )
    linked = tuple(
        p
        if i + 1 == len(back) or p.name == "first_token_sent"
        else Phase(p.name, p.start_s, back[i + 1].start_s, p.where)
        for i, p in enumerate(back)
    )
    events = chrome(a_run(a_record(0, 0.0, timeline=linked)), tmp_path)
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


def test_otlp_spans_are_a_tree_per_request_with_valid_ids_kinds_and_times(tmp_path: Path) -> None:
    records = [a_record(0, 0.0), a_record(1, 0.1, trace_id="", failure="timeout", detail="60 s", timeline=())]
    spans = otlp(a_run(*records, a_record(2, 1.0, sent_s=None, failure="unsent")), tmp_path)
    assert len({span.span_id for _, span in spans}) == len(spans) == 14
    assert all(len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.trace_id) for _, span in spans)
    assert len({span.trace_id for _, span in spans}) == 2
    client = next(s for r, s in spans if r["service.name"] == "loadgen" and s.trace_id.hex() == f"{1:032x}")
    server = next(s for _, s in spans if s.name == "completion")
    assert (client.kind, server.kind) == (3, 2) and not client.parent_span_id
    assert server.parent_span_id == client.span_id
    assert [event.name for event in client.events] == ["sent", "first token"]
    parts = [(r, s) for r, s in spans if s.parent_span_id == server.span_id]
    assert {(r["service.name"], r["service.instance.id"]) for r, _ in parts} == {
        ("gateway", "g1"), ("worker", "w1"), ("worker", "w2"),
    }  # fmt: skip
    assert len(parts) == 11 and all(s.kind == 1 for _, s in parts)
    assert all(client.start_time_unix_nano <= s.start_time_unix_nano <= s.end_time_unix_nano for _, s in parts)
    assert client.start_time_unix_nano == ZERO_S * 1e9
    failed = next(s for _, s in spans if s.status.code)
    assert (failed.status.code, failed.status.message) == (2, "timeout: 60 s")


def test_the_clients_span_is_the_one_whose_id_went_out_with_the_request(tmp_path: Path) -> None:
    trace_id, traceparent = trace_of(7, 0)
    for sent in (trace_id, ""):
        spans = otlp(a_run(a_record(0, 0.0, trace_id=sent)), tmp_path)
        client = next(span for resource, span in spans if resource["service.name"] == "loadgen")
        assert f"00-{client.trace_id.hex()}-{client.span_id.hex()}-01" == traceparent


def test_a_breakdown_adds_up_to_the_clients_ttft_and_to_the_gap_before_the_second_token() -> None:
    records = [a_record(index, float(index)) for index in range(4)]
    made = breakdown(records)
    assert set(made) == {*TTFT, "ttft", *SECOND, "second_token"}
    assert made["ttft"].mean_s == pytest.approx(0.6) == sum(made[name].mean_s for name in TTFT)
    expected = {
        "send_late": 0.01, "queued": 0.1, "sent": 0.05, "prefill_queued": 0.05, "prefilling": 0.2,
        "first_token_sent": 0.1, "ttft_other": 0.0, "client_rest": 0.09,
        "handing_over": 0.05, "kv_transfer": 0.1, "decode_queued": 0.05, "first_decode_step": 0.03,
        "second_token": 0.23,
    }  # fmt: skip
    for name, value in expected.items():
        assert made[name].mean_s == pytest.approx(value, abs=1e-6), name
        assert made[name].p50_s == pytest.approx(value, abs=1e-6) and made[name].count == 4


def test_a_breakdown_leaves_out_failures_and_records_without_a_timeline() -> None:
    assert (
        breakdown([a_record(0, 0.0, timeline=()), a_record(1, 0.0, failure="timeout"), a_record(2, 0.0, times_s=[])])
        == {}
    )
    alone = breakdown([a_record(0, 0.0, counts=[1], times_s=[0.6])])
    assert "ttft" in alone and "second_token" not in alone


def test_an_unexpected_phase_counts_as_other_and_a_second_token_from_the_same_worker_waits_for_nothing() -> None:
    at = ZERO_S
    line = (
        Phase("queued", at, at + 0.1, "g1"), Phase("lost", at + 0.1, at + 0.2, "w1"),
        Phase("prefilling", at + 0.2, at + 0.3, "w2"), Phase("first_token_sent", at + 0.3, at + 0.4, "w2"),
        Phase("decoding", at + 0.3, at + 0.9, "w2"),
    )  # fmt: skip
    made = breakdown([a_record(0, 0.0, timeline=line)])
    assert made["ttft_other"].mean_s == pytest.approx(0.1, abs=1e-6)
    assert made["second_token"].mean_s == 0.0


def test_a_file_that_cannot_be_written_is_a_load_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (write_chrome_trace, write_otlp_json):
        with pytest.raises(LoadError):
            write(a_run(), tmp_path / "file" / "trace.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_run_without_records_is_an_empty_trace(tmp_path: Path) -> None:
    assert [e["args"]["name"] for e in chrome(a_run(), tmp_path)] == ["client"]
    assert otlp(a_run(), tmp_path) == []
