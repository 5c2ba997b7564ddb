"""`dopd profile` of an emulated engine gives back what it emulates, and `check` tells right from wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dopd.perf.fit import fit
from dopd.perf.model import step_s
from dopd.perf.points import Point, PointsFile, read_points, write_points
from dopd.perf.profile import Profile, named
from dopd_loadgen.profiling import command
from dopd_loadgen.profiling.command import main

H200 = "h200-llama-3.1-8b-fp8-tp1"
STEP = (
    "prefill_fixed_s", "prefill_token_s", "prefill_token2_s", "decode_fixed_s", "decode_request_s", "decode_context_s",
)  # fmt: skip
WAY = ("kv_token_bytes", "kv_total_tokens", "max_running", "max_step_tokens", "max_model_len", "block_tokens", "gpus")


def measure(out: Path, *more: str) -> int:
    return main(["--engine", "sim", "--grid", "small", "--repeats", "1", "--quiet", "-o", str(out), *more])


def check(profile: str, engine: str, out: Path, *more: str) -> int:
    words = ["check", profile, "--engine", "sim", "--profile", engine, "--runs", "2", "--quiet", "-o", str(out)]
    return main([*words, *(more or ("--num-prompts", "60"))])


def slower(file: PointsFile, factor: float) -> PointsFile:
    return PointsFile(file.meta, [replace(point, latency_s=point.latency_s * factor) for point in file.points])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile") / "again.csv"
    assert measure(out, "--profile", H200) == 0
    return out


def told_s(profile: Profile, point: Point) -> float:
    decodes = 0 if point.phase == "prefill" else point.batch_requests
    return step_s(profile, point.prompt_tokens, point.prompt_square_tokens2, decodes, point.context_tokens)


def test_the_measured_profile_is_the_emulated_one(measured: Path) -> None:
    found, true = named(str(measured)), named(H200)
    for key in STEP:
        assert getattr(found, key) == pytest.approx(getattr(true, key), rel=0.01), key
    for key in WAY:
        assert getattr(found, key) == getattr(true, key), key
    assert found.arrival_s == pytest.approx(true.arrival_s, rel=0.001)
    assert found.name == "again"


def test_every_measured_step_lasted_what_the_emulated_profile_says_mixed_ones_too(measured: Path) -> None:
    points, true = read_points(measured).points, named(H200)
    assert {point.phase for point in points} == {"prefill", "decode", "mixed"}
    for point in points:
        assert point.latency_s == pytest.approx(told_s(true, point), rel=0.001), point


def test_the_way_into_the_engine_is_measured_apart_from_its_steps(tmp_path: Path, measured: Path) -> None:
    late = replace(read_points(measured), meta={**read_points(measured).meta, "arrival_s": 0.007})
    write_points(tmp_path / "late.csv", late)
    assert measure(tmp_path / "again.csv", "--profile", str(tmp_path / "late.csv")) == 0
    found = named(str(tmp_path / "again.csv"))
    assert found.arrival_s == pytest.approx(0.007, rel=0.001)
    assert found.decode_fixed_s == pytest.approx(named(H200).decode_fixed_s, rel=0.01)


def test_limits_of_the_grid_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "less.csv"
    assert measure(out, "--profile", H200, "--grid-prompt", "3000", "--grid-batch", "20") == 0
    for point in read_points(out).points:
        assert point.batch_requests <= 20
        assert point.context_tokens <= 20 * 3000


def test_an_engine_passes_the_check_of_its_own_measured_profile(measured: Path, tmp_path: Path) -> None:
    assert check(str(measured), H200, tmp_path) == 0
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["passed"] is True
    assert len(found["rows"]) == 8
    assert all(abs(row["error"]) < 0.01 and row["spread"] < 1e-9 for row in found["rows"])
    assert found["config"]["runs"] == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"check.json", "cdf-ttft.png", "cdf-ttft.svg", "cdf-tpot.png", "cdf-tpot.svg"}


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_profile_that_is_30_percent_off_is_missed(factor: float, measured: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    write_points(wrong, slower(read_points(measured), factor))
    assert check(str(wrong), H200, tmp_path / "out") == 1
    rows = json.loads((tmp_path / "out" / "check.json").read_text())["rows"]
    means = {row["latency"]: row for row in rows if row["figure"] == "mean"}
    assert not means["tpot"]["passed"]
    assert (means["tpot"]["error"] > 0) == (factor > 1)


def test_a_check_takes_a_load_of_ones_own_and_says_when_it_is_far_beyond_the_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.csv"
    assert measure(small, "--profile", H200, "--grid-prompt", "200", "--grid-batch", "4") == 0
    load = ("--arrivals", "poisson:rate=2", "--isl", "30000", "--osl", "4", "--num-prompts", "5")
    assert check(str(small), H200, tmp_path / "out", *load) in (0, 1)
    assert "! small" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "x.json", "--engine", "sim"], "x.json is no .csv"),
        (["-o", "no-such-folder/x.csv", "--engine", "sim"], "no folder no-such-folder"),
        (["-o", "x.csv", "--engine", "sim", "--profile", "h900"], "unknown profile 'h900'"),
        (["-o", "x.csv", "--engine", "sim", "--model", "a/b"], "--model"),
        (["-o", "x.csv", "--engine", "vllm", "--profile", H200], "--profile"),
        (["-o", "x.csv", "--engine", "sim", "--grid-prompt", "4"], "no room"),
        (["check", "nothing.csv", "--engine", "sim"], "nothing.csv"),
        (["check", H200, "--engine", "sim", "--osl", "1", "--num-prompts", "5"], "two tokens"),
    ],
)
def test_what_cannot_be_run_is_told_and_writes_nothing(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--quiet"]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_the_old_file_and_no_half_of_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "kept.csv"
    out.write_text("old")
    monkeypatch.setattr("dopd_loadgen.profiling.measure.points_of", interrupted)
    assert measure(out, "--profile", H200) == 130
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.csv"]


def test_the_fit_that_is_printed_is_the_one_of_the_file(measured: Path) -> None:
    file = read_points(measured)
    lines = command.said(fit(file), file)
    assert any("3.550 ms" in line and "14.11 us" in line for line in lines)
    assert any("mixed" in line and "mean 0.0 %" in line for line in lines)
