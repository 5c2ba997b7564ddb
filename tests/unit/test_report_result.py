"""Result files: written whole or not at all, read back without loss, and refused with a reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd.errors import LoadError
from dopd_loadgen.report.bench_json import DETAILED
from dopd_loadgen.report.files import whole_file, write_whole
from dopd_loadgen.report.requests_file import line, worker_path
from dopd_loadgen.report.result import REQUESTS, RESULT, load, store, write_result
from dopd_loadgen.report.samples import samples
from dopd_loadgen.report.summary import Settings
from tests.load_runs import TIMELINE, answer, failed, random_run, run_of

VLLM = {"duration": 2.0, "completed": 2, "failed": 1, "label": "theirs", "mean_ttft_ms": 5.0, "request_goodput": None}
VLLM_DETAILS = {
    "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.1, 0.2], [], []],
    "output_lens": [3, 1, 0],
    "errors": ["", "", "refused"],
}


# ------------------------------------------------------------------------------------------------ there and back


def test_a_run_is_read_back_without_loss(tmp_path: Path) -> None:
    stored = store(random_run(2))
    write_result(stored, tmp_path / "deep" / "er")
    (back,) = load(tmp_path / "deep" / "er")
    assert back.run == stored.run and back.summary == stored.summary and back.label == "hand"
    assert load(tmp_path / "deep" / "er" / RESULT)[0].run == stored.run


@settings(max_examples=25)
@given(st.integers(0, 2**20))
def test_figures_do_not_change_on_the_way_through_a_file(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("result")
    stored = store(random_run(seed))
    write_result(stored, folder)
    assert load(folder)[0].summary == stored.summary


def test_other_figures_can_be_had_of_a_stored_run(tmp_path: Path) -> None:
    write_result(store(random_run(2)), tmp_path)
    (back,) = load(tmp_path, Settings(metrics=("tpot",), percentiles=(10.0,)))
    assert back.summary is not None and list(back.summary.figures.latencies) == ["tpot"]


def test_without_its_requests_a_result_still_has_its_figures(tmp_path: Path) -> None:
    stored = store(random_run(2))
    write_result(stored, tmp_path)
    (tmp_path / REQUESTS).unlink()
    (back,) = load(tmp_path)
    assert back.summary == stored.summary and back.run is not None and not back.run.records
    assert not samples(back, "ttft").values_s


def test_details_are_left_out_unless_they_are_wanted(tmp_path: Path) -> None:
    stored = store(random_run(2))
    write_result(stored, tmp_path)
    assert not set(DETAILED) & set(json.loads((tmp_path / RESULT).read_text()))
    write_result(stored, tmp_path, detailed=True)
    assert set(DETAILED) <= set(json.loads((tmp_path / RESULT).read_text()))


def test_metadata_goes_to_the_top_and_over_no_figure(tmp_path: Path) -> None:
    write_result(store(random_run(2)), tmp_path, metadata={"git": "abc", "completed": "lies"})
    keys = json.loads((tmp_path / RESULT).read_text())
    assert keys["git"] == "abc" and isinstance(keys["completed"], int)


def test_what_json_cannot_say_is_said_as_vllm_does(tmp_path: Path) -> None:
    run = run_of([], workload={"request_rate": float("inf")}, settings={"where": Path("a/b")})
    write_result(store(run), tmp_path)
    keys = json.loads((tmp_path / RESULT).read_text(), parse_constant=pytest.fail)
    assert keys["request_rate"] == keys["dopd"]["run"]["workload"]["request_rate"] == "inf"
    assert keys["dopd"]["run"]["settings"] == {"where": "a/b"}


# ------------------------------------------------------------------------------------------------ one line per request


def test_a_line_has_aiperfs_meaning_and_the_schedule_beside_it() -> None:
    record = answer(0, 1.0, [2.5, 2.7, 2.9], sent_s=2.0, request_id="r1")
    made = msgspec.json.decode(msgspec.json.encode(line(record, 1_700_000_000.0, (0.0, 9.0))))
    assert made["metadata"]["scheduled_ns"] == 1_700_000_001_000_000_000
    assert made["metadata"]["request_start_ns"] == 1_700_000_002_000_000_000
    assert made["metadata"]["first_token_ns"] - made["metadata"]["request_start_ns"] == 500_000_000
    metrics = made["metrics"]
    assert metrics["time_to_first_token"] == {"value": pytest.approx(500), "unit": "ms"}
    assert metrics["time_to_first_token_from_schedule"]["value"] == pytest.approx(1500)
    assert metrics["inter_token_latency"]["value"] == pytest.approx(200)
    assert metrics["request_latency"]["value"] == pytest.approx(900)
    assert made["error"] is None and made["metadata"]["benchmark_phase"] == "profiling"


def test_a_failed_request_says_why_and_has_no_latency() -> None:
    made = line(failed(0, 1.0, "rejected", status=429, detail="full"), 0.0, (2.0, 9.0))
    assert made["error"] == {"code": 429, "type": "rejected", "message": "full"}
    assert "time_to_first_token" not in made["metrics"] and made["metadata"]["benchmark_phase"] == "warmup"


def test_the_worker_path_names_each_stay_once() -> None:
    record = answer(0, 0.0, [0.5], timeline=(*TIMELINE, TIMELINE[-1], TIMELINE[1]))
    assert worker_path(record) == ["gateway", "w1", "w2", "w1"]


# ------------------------------------------------------------------------------------------------ whole or not at all


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(LoadError, match=r"requests\.jsonl: cannot be written: No space left"):
        write_result(store(random_run(1)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="file/sub"):
        write_whole(tmp_path / "file" / "sub" / "x", b"")


# ------------------------------------------------------------------------------------------------ vLLM's files


def test_a_plain_result_of_vllm_has_the_figures_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(VLLM))
    (back,) = load(path)
    assert back.summary is None and back.run is None and back.label == "theirs" and back.keys["mean_ttft_ms"] == 5.0
    assert not samples(back, "ttft").values_s


def test_a_detailed_result_of_vllm_has_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(VLLM | VLLM_DETAILS | {"label": None}))
    (back,) = load(path)
    assert back.label == "vllm"
    assert samples(back, "ttft").values_s == [0.1, 0.2] and samples(back, "ttft").requests == 3
    assert samples(back, "tpot").values_s == [pytest.approx(0.15), 0.0]


def test_appended_results_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    path.write_text("\n".join(json.dumps(VLLM | {"label": label}) for label in "abc"))
    assert [one.label for one in load(path)] == ["a", "b", "c"]


# ------------------------------------------------------------------------------------------------ broken files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[1]", "holds a list"),
        (b"{} trailing", "is no JSON"),
        (b"\xff\xfe", "is no text"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": 1}', "no key 'duration'"),
        (b'{"duration": "long", "completed": 1}', "duration is 'long', not a number"),
        (b'{"duration": 1, "completed": 1, "p99_ttft_ms": [1]}', "p99_ttft_ms is"),
        (b'{"duration": 1, "completed": 1, "ttfts": [1], "itls": []}', "not lists of one length"),
        (b'{"duration": 1, "completed": 1, "ttfts": 7}', "not lists of one length"),
        (b'{"duration": 1, "completed": 1, "ttfts": ["x"], "itls": [[]]}', "must hold numbers"),
        (b'{"duration": 1, "completed": 1, "itls": [1.0]}', "must hold numbers"),
        (b'{"duration": 1, "completed": 1, "dopd": 3}', "not of format 1"),
        (b'{"duration": 1, "completed": 1, "dopd": {"format": 2}}', "not of format 1"),
        (b'{"duration": 1, "completed": 1, "dopd": {"format": 1, "run": {}}}', "is damaged"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(LoadError) as caught:
        load(path)
    assert reason in str(caught.value) and caught.value.where == str(path)


def test_a_missing_result_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"result\.json: cannot be read"):
        load(tmp_path)


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _wrong_type(text: str) -> str:
    return text.replace('"osl_tokens":', '"osl_tokens":"x","was":', 1)


def _uneven(text: str) -> str:
    return text.replace('"counts":[1', '"counts":[1,1', 1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, "is no request of a run"),
        (_wrong_type, r"line \d+: is no request of a run"),
        (_uneven, "times_s and"),
        (lambda text: text.split("\n", 1)[1], "has 39 requests"),
    ],
)
def test_damaged_requests_are_refused_with_their_line(
    tmp_path: Path, damage: Callable[[str], str], reason: str
) -> None:
    write_result(store(random_run(2)), tmp_path)
    path = tmp_path / REQUESTS
    path.write_text(damage(path.read_text()))
    with pytest.raises(LoadError, match=reason) as caught:
        load(tmp_path)
    assert REQUESTS in caught.value.where


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_value_under_any_known_key_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("odd") / "odd.json"
    for key in ("duration", "ttfts", "itls", "output_lens", "errors", "label", "dopd", "mean_tpot_ms"):
        path.write_text(json.dumps(VLLM | VLLM_DETAILS | {key: value}))
        try:
            (back,) = load(path)
            samples(back, "ttft")
            samples(back, "tpot")
        except LoadError as error:
            assert str(path) in error.where
