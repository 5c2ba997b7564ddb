"""Traces of every format give their requests; a row that cannot be one is refused with file, row and reason."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import source
from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.read import Trace, format_of, read_trace
from dopd_loadgen.workload.servegen import Window, arrivals_s, read_servegen
from dopd_loadgen.workload.sharegpt import read_sharegpt

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
SIMPLE = "at_s,isl_tokens,osl_tokens\n"
CLIENTS = "model,client,start_s,rate,cv,pattern,arg1,arg2\n"
LENGTHS = "model,start_s,field,token_lo,token_hi,prob\n"


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mooncake(at_ms: object = 0, isl: object = 600, osl: object = 5, ids: object = (7, 8)) -> str:
    return json.dumps({"timestamp": at_ms, "input_length": isl, "output_length": osl, "hash_ids": ids}) + "\n"


def read(folder: Path, text: str) -> Trace:
    return read_trace(written(folder, text))


def lengths(trace: Trace) -> list[tuple[float, int, int]]:
    return [(round(one.at_s, 6), one.isl_tokens, one.osl_tokens) for one in trace.planned]


def test_azure_rows_count_from_the_first_with_or_without_a_zone(tmp_path: Path) -> None:
    of_2023 = read(tmp_path, AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n")
    assert of_2023.format == "azure"
    assert lengths(of_2023) == [(0.0, 4808, 10), (0.052, 3180, 8)]
    of_2024 = read(tmp_path, AZURE + "2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 02:00:01+02:00,3,4\n")
    assert lengths(of_2024) == [(0.0, 1, 2), (0.99007, 3, 4)]


def test_burstgpt_failures_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,10,0,10,API log\n46.5,GPT-4,1087,230,1317,API log\n"
    trace = read(tmp_path, BURSTGPT + rows)
    assert (trace.format, lengths(trace)) == ("burstgpt", [(0.0, 472, 18), (41.5, 1087, 230)])
    assert trace.left_out == {"no output tokens": 1}


def test_mooncake_rows_have_the_blocks_of_the_trace(tmp_path: Path) -> None:
    trace = read(tmp_path, mooncake() + mooncake(1500, 512, 9, [7]))
    assert trace.planned == [
        Planned(1, 0.0, 600, 5, blocks=(7, 8), block_tokens=512),
        Planned(2, 1.5, 512, 9, blocks=(7,), block_tokens=512),
    ]


def test_ragpulse_times_are_strings(tmp_path: Path) -> None:
    ids = {"sys_prompt": [1], "user_input": [2]}
    trace = read(tmp_path, mooncake("0", 10, 1, ids) + mooncake("27", 11, 2, ids))
    assert (trace.format, lengths(trace)) == ("ragpulse", [(0.0, 10, 1), (27.0, 11, 2)])


@pytest.mark.parametrize(
    "text",
    [
        SIMPLE + "0.5,10,20\n2,30,40\n",
        '{"at_s":0.5,"isl_tokens":10,"osl_tokens":20}\n{"osl_tokens":40,"isl_tokens":30,"at_s":2}\n',
    ],
)
def test_our_own_format_is_csv_or_jsonl(tmp_path: Path, text: str) -> None:
    trace = read(tmp_path, text)
    assert (trace.format, lengths(trace)) == ("simple", [(0.5, 10, 20), (2.0, 30, 40)])


def test_gzip_is_told_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_bytes(gzip.compress((SIMPLE + "1,2,3\n").encode()))
    assert lengths(read_trace(path)) == [(1.0, 2, 3)]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (SIMPLE + "1,2,3\n").replace("\n", "\r\n").encode())
    assert lengths(read_trace(path)) == [(1.0, 2, 3)]


def test_reading_ends_where_the_wanted_time_ends(tmp_path: Path) -> None:
    path = written(tmp_path, SIMPLE + "1,2,3\n2,2,3\nbroken,2,3\n")
    trace = read_trace(path, end_s=2.0)
    assert lengths(trace) == [(1.0, 2, 3)]
    assert not trace.whole


def test_rows_out_of_order_name_the_flag_that_sorts_them(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE + "2023-11-16 00:00:05,1,1\n2023-11-16 00:00:03,2,2\n2023-11-16 00:00:09,3,3\n")
    with pytest.raises(LoadError, match=r"row 3: at -2 s, before the row above it at 0 s; --sort sorts"):
        read_trace(path)
    assert lengths(read_trace(path, sort=True)) == [(0.0, 2, 2), (2.0, 1, 1), (6.0, 3, 3)]


BAD_ROWS = [
    (AZURE + "2023-13-16 00:00:05,1,1\n", 2, "TIMESTAMP is '2023-13-16 00:00:05', not a date and time"),
    (AZURE + "2023-11-16 00:00:05,1\n", 2, "2 fields where the header has 3"),
    (AZURE + "2023-11-16 00:00:05,1,1\n\n2023-11-16 00:00:06,1,1\n", 3, "the row is empty"),
    (AZURE + "2023-11-16 00:00:05,1,1\n2063-11-16 00:00:05,1,1\n", 3, "more than ten years"),
    (AZURE + "2023-11-16 00:00:05,-4,1\n", 2, "ContextTokens is -4, negative"),
    (AZURE + "2023-11-16 00:00:05,4.5,1\n", 2, "ContextTokens is '4.5', not a whole number"),
    (AZURE + "2023-11-16 00:00:05,4,1_0\n", 2, "GeneratedTokens is '1_0', not a whole number"),
    (AZURE + "2023-11-16 00:00:05,4,10000001\n", 2, "GeneratedTokens is 10000001, above 10000000"),
    (AZURE + "2023-11-16 00:00:05,4," + "9" * 5000 + "\n", 2, "GeneratedTokens is '9+…, not a whole number"),
    (AZURE, 1, "no request up to here"),
    (AZURE + '"2023', 2, "2 fields|1 fields"),
    (BURSTGPT + "-1,m,1,1,2,x\n", 2, "Timestamp is '-1', negative"),
    (BURSTGPT + "nan,m,1,1,2,x\n", 2, "Timestamp is 'nan', not finite"),
    (BURSTGPT + "inf,m,1,1,2,x\n", 2, "Timestamp is 'inf', not finite"),
    (BURSTGPT + "1e12,m,1,1,2,x\n", 2, "Timestamp is '1e12', beyond ten years"),
    (BURSTGPT + "soon,m,1,1,2,x\n", 2, "Timestamp is 'soon', not a number"),
    (SIMPLE + "1,2,3\n2,0,3\n1,2,3\n", 4, "before the row above"),
    (mooncake() + '{"a":' * 100_000, 2, "not a JSON object: maximum recursion"),
    (mooncake() + "{broken\n", 2, "not a JSON object"),
    (mooncake() + "[1]\n", 2, "not a JSON object"),
    (mooncake() + "\n", 2, "the row is empty"),
    (mooncake(isl=True), 1, "input_length is True, not a whole number"),
    (mooncake(isl=10**29), 1, "input_length is 1.*, (above 10000000|not a whole number)"),
    (mooncake().replace("600", "9" * 5000), 1, "input_length is .*, (above 10000000|not)|not a JSON object"),
    (mooncake(isl=1.5), 1, "input_length is 1.5, not a whole number"),
    (mooncake(ids=[1, 2, 3]), 1, "3 hash_ids of 512 tokens for 600 tokens"),
    (mooncake(ids=[1, "x"]), 1, "hash_ids is not a list of whole numbers"),
    (mooncake(ids=[-1]), 1, "hash_ids is not a list of whole numbers"),
    (mooncake() + '{"timestamp": 1, "input_length": 2}\n', 2, "lacks output_length, hash_ids: has input_length"),
    (mooncake(at_ms="1"), 1, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "row", "reason"), BAD_ROWS)
def test_a_row_that_is_no_request_is_refused_with_file_row_and_reason(
    tmp_path: Path, text: str, row: int, reason: str | None
) -> None:
    path = written(tmp_path, text)
    if reason is None:
        assert read_trace(path).planned[0].at_s == 0.001
        return
    with pytest.raises(LoadError, match=reason) as caught:
        read_trace(path)
    assert caught.value.where == f"{path}, row {row}"


def test_unknown_columns_are_named_beside_those_wanted(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has a, b; wanted one of azure: TIMESTAMP, ContextTokens") as caught:
        format_of(written(tmp_path, "a,b\n1,2\n"))
    assert caught.value.where.endswith("row 1")
    with pytest.raises(LoadError, match=r"lacks GeneratedTokens: has ContextTokens, TIMESTAMP; wanted TIMESTAMP"):
        read_trace(written(tmp_path, "TIMESTAMP,ContextTokens\n"), format="azure")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n", "the first row is empty"),
        (gzip.compress((SIMPLE + "1,2,3\n" * 2000).encode(), mtime=0)[:-20], "the gzip data ends too early"),
        (b"\x1f\x8b" + bytes(range(40)) * 30, "the gzip data is damaged"),
        (b"\x7fELF\xff\xfe\x00garbage", "not a text file"),
        (b"at_s,isl_tokens,osl_tokens\n\xff\xff\n", "not a text file"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=reason) as caught:
        read_trace(path)
    assert str(path) in caught.value.where


def test_a_flipped_bit_inside_gzip_is_found(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress((SIMPLE + "1,2,3\n" * 5000).encode()))
    packed[-6] ^= 1  # in the checksum
    path = tmp_path / "trace.gz"
    path.write_bytes(bytes(packed))
    with pytest.raises(LoadError, match="the gzip data is damaged"):
        read_trace(path)


def test_what_cannot_be_opened_is_a_load_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LoadError, match=r"cannot be read: (Is a directory|No such file)"):
            read_trace(path)
        with pytest.raises(LoadError, match="cannot be read"):
            source.sha256(path)


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LINE_LIMIT", 1000)
    with pytest.raises(LoadError, match="longer than 1000 characters") as caught:
        read_trace(written(tmp_path, SIMPLE + "1" * 2000 + "\n"))
    assert caught.value.where.endswith("row 2")


# ------------------------------------------------------------------------------------------------------------ ShareGPT


def conversation(*turns: tuple[str, str]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": who, "value": what} for who, what in turns]}


def words(text: str) -> int:
    return len(text.split())


def test_sharegpt_gives_first_question_and_length_of_first_answer(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([
        conversation(("human", "a b c"), ("gpt", "d e"), ("human", "more"), ("gpt", "f")),
        conversation(("gpt", "a"), ("human", "b")),
        conversation(("human", "alone")),
        conversation(("human", " "), ("gpt", "b")),
        conversation(("human", "a b c d e f"), ("gpt", "b")),
        conversation(("user", "q"), ("assistant", "b b b b")),
    ]))  # fmt: skip
    assert format_of(path) == "sharegpt"
    found = read_sharegpt(path, words, max_isl=5)
    assert [(one.text, one.isl_tokens, one.osl_tokens) for one in found.prompts] == [("a b c", 3, 2), ("q", 1, 4)]
    assert found.left_out == {
        "does not begin with a question and its answer": 2, "an empty question or answer": 1, "prompt too long": 1
    }  # fmt: skip


def test_sharegpt_counts_only_what_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([conversation(("human", f"q {n}"), ("gpt", "a")) for n in range(50)]))
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return words(text)

    first = read_sharegpt(path, count, generator(0, "x"), limit=5).prompts
    assert len(first) == 5
    assert len(counted) == 10
    assert first != read_sharegpt(path, count, limit=5).prompts
    assert first == read_sharegpt(path, count, generator(0, "x"), limit=5).prompts


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("[]", "", "no conversations"),
        ("[{]", "", "not a JSON list"),
        ("[" * 200_000, "", "not a JSON list .*recursion"),
        ('{"id": 1}', "", "not a JSON list"),
        ("  ", "", "the file is empty"),
        ('[{"id": 1}]', ", conversation 1", "not {id, conversations"),
        (
            json.dumps([conversation(("human", "a"), ("gpt", "b")), {"conversations": [{"from": 1, "value": ""}]}]),
            ", conversation 2",
            "Expected `str`, got `int`",
        ),
        (json.dumps([conversation(("human", "a"))]), "", "no usable conversation of 1"),
    ],
)
def test_a_file_of_no_conversations_is_refused(tmp_path: Path, text: str, where: str, reason: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(LoadError, match=reason) as caught:
        read_sharegpt(path, words)
    assert caught.value.where == f"{path}{where}"


# ------------------------------------------------------------------------------------------------------------ ServeGen


def servegen(folder: Path, clients: str, bins: str) -> Path:
    written(folder, LENGTHS + bins, "servegen_lengths_6h.csv")
    return written(folder, CLIENTS + clients, "servegen_clients_10min.csv")


BINS = (
    "m,0,input_tokens,100,200,1\nm,0,output_tokens,10,20,1\n"
    "m,21600,input_tokens,300,301,1\nm,21600,output_tokens,1,2,1\n"
)


def test_servegen_clients_become_requests_with_the_lengths_of_their_time(tmp_path: Path) -> None:
    path = servegen(tmp_path, "m,0,0,2,1.5,Gamma,1,1\nm,7,0,1,1,Weibull,1,1\nm,0,21600,1,1,Gamma,1,1\n", BINS)
    assert format_of(path) == "servegen"
    planned = read_servegen(path, None, generator(0, "x"), 0.0, 22200.0).planned
    early, late = [one for one in planned if one.at_s < 600], [one for one in planned if one.at_s >= 21600]
    assert len(early) + len(late) == len(planned)
    assert 1500 < len(early) < 2100 and 500 < len(late) < 700
    assert {one.phase for one in early} == {"0", "7"}
    assert all(100 <= one.isl_tokens < 200 and 10 <= one.osl_tokens < 20 for one in early)
    assert {(one.isl_tokens, one.osl_tokens) for one in late} == {(300, 1)}
    assert planned == sorted(planned, key=lambda one: one.at_s)


@pytest.mark.parametrize("pattern", ["Gamma", "Weibull"])
@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_a_client_has_its_rate_and_its_variation(pattern: str, cv: float) -> None:
    rng = generator(1, f"{pattern}{cv}")
    times = [arrivals_s(Window("c", 0.0, 1.0, cv, pattern), rng) for _ in range(300)]
    mean = sum(map(len, times)) / len(times)
    # 600 are expected; the count's standard deviation is about cv * sqrt(600), and over 300 windows / sqrt(300).
    assert abs(mean - 600) < 5 * max(cv, 0.3) * 600**0.5 / 300**0.5
    gaps = [b - a for some in times for a, b in pairwise(some)]
    average = sum(gaps) / len(gaps)
    found = (sum((gap - average) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / average
    assert abs(found / cv - 1) < 0.1


@pytest.mark.parametrize(
    ("clients", "bins", "model", "reason"),
    [
        ("m,0,0,2,1,Gamma,1,1\nn,0,0,2,1,Gamma,1,1\n", BINS, None, "choose one of m, n"),
        ("m,0,0,2,1,Gamma,1,1\n", BINS, "n", "'n' is not in .* which has m"),
        ("m,0,0,2,1,Pareto,1,1\n", BINS, None, "pattern is 'Pareto', neither Gamma nor Weibull"),
        ("m,0,0,2,0,Gamma,1,1\n", BINS, None, "cv is 0.0, not above 0"),
        ("m,0,0,-2,1,Gamma,1,1\n", BINS, None, "rate is -2.0, not in"),
        ("", BINS, None, "a header and no rows"),
        ("m,0,0,2,1,Gamma,1,1\n", BINS, "m", "--duration-s"),
        ("m,0,0,99999,1,Gamma,1,1\n", BINS, None, "the limit is 10000000"),
        ("m,0,0,2,1,Gamma,1,1\n", "m,0,input_tokens,5,5,1\n", None, "row 2: not a bin"),
        ("m,0,0,2,1,Gamma,1,1\n", "m,0,input_tokens,5,6,1\n", None, "has no output_tokens of m"),
    ],
)
def test_servegen_files_that_fit_nothing_are_refused(
    tmp_path: Path, clients: str, bins: str, model: str | None, reason: str
) -> None:
    path = servegen(tmp_path, clients, bins)
    end_s = 700.0 if reason == "--duration-s" else 600.0
    with pytest.raises(LoadError, match=reason):
        read_servegen(path, model, generator(0, "x"), 0.0, end_s)


def test_servegen_needs_its_lengths_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, CLIENTS + "m,0,0,2,1,Gamma,1,1\n", "servegen_clients_10min.csv")
    with pytest.raises(LoadError, match="needs one servegen_lengths"):
        read_servegen(path, None, generator(0, "x"), 0.0, 600.0)
