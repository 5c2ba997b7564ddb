"""Profile files: what is read, what comes back, and every way in which one can be wrong."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dopd.errors import ConfigError
from dopd.perf.points import Point, PointsFile, read_points, read_table, write_points

META = {"name": "x", "source": 'a "test"', "gpus": 1, "kv_token_bytes": 131_072, "kv_total_tokens": 100_000}
POINTS = (
    *(Point("prefill", n, n * n, 1, 0, 0.02 + 2e-5 * n + 1e-9 * n * n) for n in (100, 500, 1000, 4000)),
    *(Point("decode", 0, 0, b, b * c, 0.02 + 5e-5 * b + 3e-8 * b * c) for b in (1, 8, 64) for c in (200, 2000)),
    Point("mixed", 512, 512 * 512, 8, 8000, 0.035),
)
HEAD = "".join(
    f"# {line}\n"
    for line in ('name = "x"', 'source = "t"', "gpus = 1", "kv_token_bytes = 131072", "kv_total_tokens = 100000")
)
COLUMNS = "phase,prompt_tokens,prompt_square_tokens2,batch_requests,context_tokens,latency_s\n"
ROWS = (
    "prefill,569,323761,1,0,0.127\n"
    "prefill,1013,1026169,1,0,0.159\n"
    "decode,0,0,1,600,0.020\n"
    "decode,0,0,26,16640,0.023\n"
    "decode,0,0,75,90000,0.031\n"
)


def written(path: Path, text: str) -> Path:
    file = path / "points.csv"
    file.write_text(text)
    return file


def test_what_is_written_is_read_back_as_equal(tmp_path: Path) -> None:
    file = PointsFile(META | {"engine": "vLLM\n0.32", "ratio": 0.5, "eager": True}, POINTS)
    write_points(tmp_path / "p.csv", file)
    read = read_points(tmp_path / "p.csv")
    assert read == file
    assert [point.row for point in read.points] == list(range(10, 10 + len(POINTS)))


def test_milliseconds_under_their_name_are_the_same_seconds(tmp_path: Path) -> None:
    seconds = read_points(written(tmp_path, HEAD + COLUMNS + ROWS)).points
    rows = [line.rpartition(",") for line in ROWS.splitlines()]
    ms = "".join(f"{left},{float(last) * 1e3!r}\n" for left, _, last in rows)
    told = read_points(written(tmp_path, HEAD + COLUMNS.replace("latency_s", "latency_ms") + ms)).points
    assert [p.latency_s for p in told] == pytest.approx([p.latency_s for p in seconds])


def row(number: int, text: str) -> Callable[[str], str]:
    """The file with its line `number` (from 1) replaced."""

    def changed(whole: str) -> str:
        lines = whole.splitlines(keepends=True)
        lines[number - 1] = text + "\n"
        return "".join(lines)

    return changed


def swap(old: str, new: str) -> Callable[[str], str]:
    def changed(whole: str) -> str:
        assert old in whole
        return whole.replace(old, new)

    return changed


BAD: dict[str, tuple[Callable[[str], str], str, str]] = {
    # what is wrong: the change, where it is (file with its row, if one), the reason
    "seconds in milliseconds' place": (row(7, "prefill,569,323761,1,0,127"), ":7", "milliseconds taken for seconds"),
    "a decode step of 20 s": (row(9, "decode,0,0,1,600,20"), ":9", "slower than any engine"),
    "milliseconds in seconds' place": (swap("latency_s", "latency_ms"), ":7", "seconds taken for milliseconds"),
    "a step faster than any": (row(9, "decode,0,0,1,600,0.00002"), ":9", "faster than any engine"),
    "a prefill faster than any": (row(8, "prefill,100000,10000000000,1,0,0.009"), ":8", "faster than any engine"),
    "a negative time": (row(8, "prefill,1013,1026169,1,0,-0.159"), ":8", "at least 0"),
    "no time at all": (row(8, "prefill,1013,1026169,1,0,0"), ":8", "faster than any engine"),
    "NaN": (row(8, "prefill,1013,nan,1,0,0.159"), ":8: prompt_square_tokens2", "no measurement"),
    "infinity": (row(8, "prefill,1013,inf,1,0,0.159"), ":8", "no measurement"),
    "a word": (row(8, "prefill,many,1026169,1,0,0.159"), ":8: prompt_tokens", "'many' is no number"),
    "an empty field": (row(8, "prefill,1013,1026169,1,,0.159"), ":8: context_tokens", "'' is no number"),
    "a short row": (row(8, "prefill,1013,1026169"), ":8", "not as many fields"),
    "a long row": (row(8, "prefill,1013,1026169,1,0,0.159,7"), ":8", "not as many fields"),
    "an unknown phase": (row(8, "encode,1013,1026169,1,0,0.159"), ":8: phase", "use prefill, decode or mixed"),
    "a prefill without prompt": (row(8, "prefill,0,0,1,0,0.159"), ":8: prompt_tokens", "0 in a prefill"),
    "a decode with a prompt": (row(9, "decode,10,100,1,600,0.02"), ":9: prompt_tokens", "10 in a decode"),
    "a prefill with decodes' context": (row(8, "prefill,1013,1026169,1,9,0.159"), ":8", "or make it mixed"),
    "nobody in the batch": (row(9, "decode,0,0,0,600,0.02"), ":9: batch_requests", "do nothing"),
    "too small a square": (row(8, "prefill,1013,1013,1,0,0.159"), ":8: prompt_square_tokens2", "below 1026169"),
    "decode does not grow": (swap("0.031", "0.015"), "", "does not grow"),
    "prefill does not grow": (swap("0.127", "0.159"), "", "does not grow"),
    "no unit": (swap("latency_s", "latency"), ": latency", "without unit; call it latency_s"),
    "no unit of the context": (swap("context_tokens,", "context,"), ": context", "call it context_tokens"),
    "an unknown unit": (swap("latency_s", "latency_us"), ": latency_us", "use latency_s, or latency_ms"),
    "a column too many": (swap("latency_s", "latency_s,note"), ": note", "no column"),
    "two times": (swap("context_tokens,latency_s", "latency_ms,latency_s"), ": latency_s", "keep one"),
    "a missing column": (swap("context_tokens,", ""), ": context_tokens", "missing"),
    "no name": (swap('# name = "x"\n', ""), ": name", "missing in the head"),
    "a count in quotes": (swap("gpus = 1", 'gpus = "1"'), ": gpus", "whole number"),
    "a count of 0": (swap("gpus = 1", "gpus = 0"), ": gpus", "whole number above 0"),
    "a name that is none": (swap('name = "x"', "name = 7"), ": name", "text in quotes"),
    "a list": (swap('name = "x"', "name = [7]"), ": name", "text, a number"),
    "a bandwidth that is none": (swap("gpus = 1", "gpus = 1\n# transfer_bytes_per_s = inf"), "", "at least 0"),
    "a key with a slip": (swap("gpus = 1", "gpus = 1\n# max_runing = 7"), ": max_runing", "'max_running'"),
    "a head that is no TOML": (swap("gpus = 1", "gpus is 1"), ":3: head", "no `key = value`"),
}


@pytest.mark.parametrize(("change", "where", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_row_and_reason(
    change: Callable[[str], str], where: str, reason: str, tmp_path: Path
) -> None:
    file = written(tmp_path, change(HEAD + COLUMNS + ROWS))
    with pytest.raises(ConfigError) as refused:
        read_points(file)
    assert f"{file}{where}" in str(refused.value)
    assert reason in str(refused.value)


def test_the_good_file_that_they_are_made_from_is_read(tmp_path: Path) -> None:
    assert len(read_points(written(tmp_path, HEAD + COLUMNS + ROWS)).points) == 5


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: file: cannot be read"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_points(tmp_path / "bytes.csv")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    wrong = PointsFile(META, (*POINTS, replace(POINTS[0], latency_s=20.0)))
    with pytest.raises(ConfigError, match="slower than any engine"):
        write_points(tmp_path / "p.csv", wrong)
    assert not (tmp_path / "p.csv").exists()


TABLE = (
    "gpu,model,dtype,tp,engine,phase,tokens,batch,context,latency_s,kind,source\n"
    "H9,tiny,bf16,2,v1,prefill,128,1,128,0.02,measured,s\n"
    "H9,tiny,bf16,2,v1,prefill,1024,4,256,0.05,measured,s\n"
    "H9,tiny,bf16,2,v1,decode,3,3,500,0.01,measured,s\n"
    "H9,tiny,bf16,1,v1,decode,3,3,500,0.02,measured,s\n"
)


def test_a_table_of_many_engines_gives_the_rows_of_one(tmp_path: Path) -> None:
    path = tmp_path / "all.csv.gz"
    path.write_bytes(gzip.compress(TABLE.encode()))
    file = read_table(path, META, gpu="H9", model="tiny", tp=2, dtype="bf16")
    assert file.points == (
        Point("prefill", 128, 128 * 128, 1, 0, 0.02),
        Point("prefill", 1024, 4 * 256 * 256, 4, 0, 0.05),
        Point("decode", 0, 0, 3, 1500, 0.01),
    )
    with pytest.raises(ConfigError, match="none of H9 tiny fp8 TP2"):
        read_table(path, META, gpu="H9", model="tiny", tp=2, dtype="fp8")
    path.write_bytes(gzip.compress(TABLE.replace("0.05", "70").encode()))
    with pytest.raises(ConfigError, match=r"gz:3: latency_s: 70 s for 1024"):
        read_table(path, META, gpu="H9", model="tiny", tp=2, dtype="bf16")
