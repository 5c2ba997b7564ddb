"""`dopd-loadgen` from its command line: exit codes, files, and what is said of input that cannot be used."""

import json
from pathlib import Path

import pytest

from dopd.errors import LoadError
from dopd_gateway.tokenizer import Tokenizer
from dopd_loadgen.arguments import settings_of, workload_of
from dopd_loadgen.cli import main, parser
from dopd_loadgen.live import check_lengths, enough_processes
from dopd_loadgen.workload import WorkloadSpec, plan
from tests.text_side import tiny_bpe

SIM = [
    "sim",
    "--quiet",
    "--arrivals",
    "poisson:rate=8",
    "--isl",
    "200",
    "--osl",
    "20",
    "--duration",
    "10",
    "--seed",
    "3",
]
ROWS = ["TIMESTAMP,ContextTokens,GeneratedTokens"] + [
    f"2023-11-16 18:17:{second:02}.9799600,{100 + second},{5 + second}" for second in range(0, 30, 2)
]


def trace(folder: Path, rows: list[str]) -> str:
    path = folder / "trace.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def result(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "result.json").read_text())
    return found


def test_a_simulated_run_writes_result_requests_pictures_page_and_spans(tmp_path: Path) -> None:
    out, spans = tmp_path / "out", tmp_path / "spans.json"
    assert main([*SIM, "--result-dir", str(out), "--traces-out", str(spans), "--metadata", "rack=7"]) == 0
    written = {path.name for path in out.iterdir()}
    assert {"result.json", "requests.jsonl", "report.html", "cdf-ttft.png", "cdf-tpot.svg"} <= written
    found = result(out)
    assert found["rack"] == "7"
    assert found["completed"] == len((out / "requests.jsonl").read_text().splitlines()) > 40
    ours = found["dopd"]
    assert isinstance(ours, dict)
    assert ours["run"]["versions"]["python"] and ours["run"]["workload"]["spec"]["osl"] == "20"
    assert ours["run"]["settings"]["seed"] == 3
    assert {event["ph"] for event in json.loads(spans.read_text())["traceEvents"]} >= {"M", "X"}


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    for name in "ab":
        assert main([*SIM, "--result-dir", str(tmp_path / name)]) == 0
    a, b = (result(tmp_path / name)["dopd"]["summary"] for name in "ab")  # type: ignore[index]
    assert a == b
    assert main([*SIM[:-1], "4", "--result-dir", str(tmp_path / "c")]) == 0
    assert result(tmp_path / "c")["dopd"]["summary"] != a  # type: ignore[index]


def test_spans_are_otlp_where_the_name_says_so(tmp_path: Path) -> None:
    spans = tmp_path / "run.otlp.json"
    assert main([*SIM, "--traces-out", str(spans)]) == 0
    assert json.loads(spans.read_text())["resourceSpans"]


def test_a_missed_attainment_is_exit_code_1_and_says_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIM, "--goodput", "ttft:0.1", "--assert-attainment", "0.99"]) == 1
    assert "0.00 %" in capsys.readouterr().err
    assert main([*SIM, "--goodput", "mlperf-llama3.1-8b", "--assert-attainment", "0.99"]) == 0


def test_a_trace_is_replayed_with_its_own_times_and_lengths(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(["sim", "--quiet", "--trace", trace(tmp_path, ROWS), "--rate-scale", "2", "--result-dir", str(out)]) == 0
    )
    records = [json.loads(line)["dopd"] for line in (out / "requests.jsonl").read_text().splitlines()]
    assert [(r["intended_s"], r["isl_tokens"], r["osl_tokens"]) for r in records] == [
        (second / 2, 100 + second, 5 + second) for second in range(0, 30, 2)
    ]
    assert all(sum(r["counts"]) == r["osl_tokens"] for r in records)


@pytest.mark.parametrize(
    ("row", "reason"),
    [("2023-11-16 18:17:31,-5,10", "-5"), ("nonsense", "row 17"), ("2023-11-16 18:17:00,5,10", "--sort")],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    row: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    path = trace(tmp_path, [*ROWS, row])
    assert main(["sim", "--quiet", "--trace", path, "--result-dir", str(out), "--traces-out", str(out / "t.json")]) == 2
    said = capsys.readouterr().err
    assert path in said and "row 17" in said and reason in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--goodput", "itl:5"], "--goodput"),
        (["--policy", "none-such"], "none-such"),
        (["--profile", "none-such"], "none-such"),
        (["--prefill", "-1"], "[cluster]"),
        (["--isl", "lognormal:mean=x"], "--isl"),
        (["--loop"], "--loop"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_named(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIM, *flags]) == 2
    assert named in capsys.readouterr().err


def test_a_target_that_does_not_answer_is_said_so_with_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = "http://127.0.0.1:9"
    assert main(["run", "--url", nobody, *SIM[1:], "--ready-check-timeout-sec", "0"]) == 2
    assert nobody in capsys.readouterr().err


def test_results_are_compared_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        assert main([*SIM, "--label", name, "--result-dir", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(tmp_path / "both")]) == 0
    said = capsys.readouterr().out
    assert "one" in said and "two" in said and "Comparison" in said
    assert (tmp_path / "both" / "report.html").exists()


def test_a_trace_is_described_in_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "trace.png"
    assert main(["trace", "describe", trace(tmp_path, ROWS), "--plot", str(picture)]) == 0
    assert "requests/s" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_keys_headers_and_passwords_are_not_kept_with_the_result() -> None:
    words = ["run", "--api-key", "sekrit", "--header", "Authorization=sekrit", "--num-prompts", "1"]
    for place in (["--url", "http://me:sekrit@gateway:8000"], ["--nats", "nats://client:sekrit@nats:4222"]):
        kept = settings_of(parser().parse_args([*words, *place]))
        assert "sekrit" not in json.dumps(kept)
        assert kept[place[0].strip("-")].endswith(("://gateway:8000", "://nats:4222"))


def test_a_load_of_many_tokens_gets_more_than_one_client_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for rate, processes in ((10, 1), (250, 2), (5_000, 4)):
        spec = WorkloadSpec("synthetic", request_rate=rate, isl="10", osl="100", duration_s=10.0)
        assert enough_processes(plan(spec)) == processes


def test_a_prompt_too_short_to_be_text_is_refused_before_anything_is_sent() -> None:
    schedule = plan(WorkloadSpec("synthetic", request_rate=5, isl="1", osl="5", num_prompts=3))
    with pytest.raises(LoadError, match=r"--tokenizer.*request 0 has a prompt of 1 tokens"):
        check_lengths(Tokenizer(tiny_bpe(bos=True)), schedule)


def test_without_a_source_the_load_is_that_of_vllms_benchmark() -> None:
    def load(*words: str) -> list[tuple[float, int, int]]:
        schedule = plan(workload_of(parser().parse_args(["run", *words])))
        return [(one.at_s, one.isl_tokens, one.osl_tokens) for one in schedule]

    assert load() == [(0.0, 1024, 128)] * 1000
    assert load("--num-prompts", "7", "--random-input-len", "50", "--random-output-len", "9") == [(0.0, 50, 9)] * 7
    assert len({at_s for at_s, _, _ in load("--num-prompts", "7", "--request-rate", "5")}) == 7


def test_the_report_says_what_the_waits_are_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIM, "--isl", "600"]) == 0  # 256 tokens are the least that the store moves
    said = capsys.readouterr().out
    for part in ("prefilling", "ttft", "kv transfer", "first decode step", "second token"):
        assert f" {part} " in said, part
