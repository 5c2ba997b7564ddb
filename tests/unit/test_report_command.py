"""`dopd-loadgen report` and the end of a run: what is printed, written and returned."""

import argparse
import json
from pathlib import Path

import pytest

from dopd_loadgen.model import Record
from dopd_loadgen.report.command import add_arguments, finish, run, settings_of
from dopd_loadgen.report.metrics import summarise
from dopd_loadgen.report.result import store, write_result
from dopd_loadgen.report.summary import Settings
from dopd_loadgen.report.verdict import shortfall, verdict
from tests.load_runs import answer, failed, random_run, run_of


def args(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Three of four good."""
    records: list[Record] = [answer(i, float(i), [i + 0.5, i + 0.55]) for i in range(3)]
    write_result(store(run_of([*records, failed(3, 3.0, "rejected")])), tmp_path / "result")
    return tmp_path / "result"


def test_a_stored_result_is_shown(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args(result)) == 0
    assert "75.00 % (3 of 4)" in capsys.readouterr().out


def test_a_stored_run_is_judged_by_other_targets(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args(result, "--goodput", "ttft:400")) == 0
    assert "0.00 % (0 of 4)" in capsys.readouterr().out
    (result / "requests.jsonl").unlink()
    assert run(args(result, "--goodput", "ttft:400")) == 2
    assert "other targets need the requests" in capsys.readouterr().err


def test_plots_and_page_are_written_for_several_results(result: Path, tmp_path: Path) -> None:
    write_result(store(random_run(1)), tmp_path / "other")
    foreign = tmp_path / "vllm.json"
    foreign.write_text(json.dumps({"duration": 1.0, "completed": 1, "label": "theirs"}))
    assert run(args(result, tmp_path / "other", foreign, "-o", tmp_path / "out")) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"report.html", "goodput-rate.png", "goodput-rate.svg", "cdf-ttft.png", "roles-2.svg"}
    assert not [name for name in written if name.endswith(".part")]
    assert "theirs" in (tmp_path / "out" / "report.html").read_text()


def test_the_end_of_a_run_leaves_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = finish(random_run(1), Settings(), tmp_path, detailed=False, metadata={"by": "hand"})
    assert stored.summary is not None and "Attainment" in capsys.readouterr().out
    assert {"result.json", "requests.jsonl", "report.html", "over-time.png"} <= {one.name for one in tmp_path.iterdir()}
    assert json.loads((tmp_path / "result.json").read_text())["by"] == "hand"


def test_a_run_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finish(run_of([]), Settings(), None, detailed=False, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_ends_with_2_and_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args(tmp_path / "no")) == 2
    assert str(tmp_path / "no") in capsys.readouterr().err


def test_an_asserted_attainment_decides_the_exit_code(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args(result, "--assert-attainment", "0.75")) == 0
    assert run(args(result, "--assert-attainment", "0.8")) == 1
    said = capsys.readouterr().err
    assert "attainment is 75.00 % (3 of 4), 5.00 points below the 80 % that are wanted" in said


def test_attainment_cannot_be_asserted_of_vllms_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "vllm.json"
    foreign.write_text(json.dumps({"duration": 1.0, "completed": 1}))
    assert run(args(foreign, "--assert-attainment", "0.9")) == 2
    assert "dopd-loadgen only" in capsys.readouterr().err


def test_a_run_without_a_request_is_a_miss() -> None:
    summary = summarise(run_of([]))
    assert verdict(summary, 0.01) == 1 and "no request was due" in shortfall(summary, 0.01)


def test_exactly_what_is_wanted_is_enough() -> None:
    for good in range(1, 50):
        records = [answer(i, 0.0, [0.5]) if i < good else failed(i, 0.0, "timeout") for i in range(50)]
        assert shortfall(summarise(run_of(records)), float(f"{good / 50:.2f}")) == ""


@pytest.mark.parametrize(
    "words",
    [
        ("--assert-attainment", "0"),
        ("--assert-attainment", "1.1"),
        ("--assert-attainment", "nan"),
        ("--assert-attainment", "most"),
        ("--metric-percentiles", "0"),
        ("--metric-percentiles", "50,x"),
        ("--metric-percentiles", "nan"),
        ("--percentile-metrics", "ttft,speed"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        args("result", *words)
    assert f"{words[0]}: " in capsys.readouterr().err


def test_percentiles_are_sorted_and_each_once() -> None:
    chosen = settings_of(args("r", "--metric-percentiles", "99,50,99", "--percentile-metrics", "itl,itl,ttft"))
    assert chosen == Settings(metrics=("itl", "ttft"), percentiles=(50.0, 99.0))
