"""One specification, one load: what is asked for is what comes out, in every process; contradictions are refused."""

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest

from dopd.errors import LoadError
from dopd_loadgen.workload import WorkloadSpec, describe, plan
from dopd_loadgen.workload.presets import names
from dopd_loadgen.workload.source import sha256

SIMPLE = "at_s,isl_tokens,osl_tokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Twenty requests, one every two seconds, of 100 to 119 input and 10 to 29 output tokens."""
    path = tmp_path / "trace.csv"
    path.write_text(SIMPLE + "".join(f"{2 * n},{100 + n},{10 + n}\n" for n in range(20)))
    return str(path)


@pytest.fixture
def sharegpt(tmp_path: Path) -> str:
    path = tmp_path / "sharegpt.json"
    turns = [({"from": "human", "value": "q " * n}, {"from": "gpt", "value": "a " * (n + 1)}) for n in range(1, 31)]
    path.write_text(json.dumps([{"id": str(n), "conversations": two} for n, two in enumerate(turns)]))
    return str(path)


def words(text: str) -> int:
    return len(text.split())


def test_a_trace_is_replayed_as_it_is(trace: str) -> None:
    planned = plan(WorkloadSpec(trace))
    assert [(one.index, one.at_s, one.isl_tokens, one.osl_tokens) for one in planned] == [
        (n, 2.0 * n, 100 + n, 10 + n) for n in range(20)
    ]
    assert planned.span_s == 38.0


def test_scaling_start_and_duration_are_of_source_source_and_run(trace: str) -> None:
    planned = plan(WorkloadSpec(trace, start_s=10.0, rate_scale=4.0, duration_s=5.0))
    assert [(one.at_s, one.isl_tokens) for one in planned] == [(0.5 * n, 105 + n) for n in range(10)]
    assert planned.span_s == 5.0


def test_a_number_of_prompts_ends_a_trace(trace: str) -> None:
    assert len(plan(WorkloadSpec(trace, num_prompts=7))) == 7
    assert len(plan(WorkloadSpec(trace, num_prompts=7, duration_s=5.0))) == 3


def test_a_looped_trace_fills_the_duration_and_the_number(trace: str) -> None:
    planned = plan(WorkloadSpec(trace, loop=True, duration_s=399.0, rate_scale=2.0))
    assert len(planned) == pytest.approx(400, abs=2)
    assert [one.index for one in planned] == list(range(len(planned)))
    assert len(plan(WorkloadSpec(trace, loop=True, num_prompts=77))) == 77


def test_new_times_keep_the_lengths_of_the_trace(trace: str) -> None:
    planned = plan(WorkloadSpec(trace, request_rate=100.0))
    assert [one.isl_tokens for one in planned] == list(range(100, 120))
    assert 0.05 < planned[-1].at_s < 0.6
    at_once = plan(WorkloadSpec(trace, request_rate=math.inf, num_prompts=5))
    assert [(one.at_s, one.isl_tokens) for one in at_once] == [(0.0, 100 + n) for n in range(5)]


def test_a_rate_and_a_duration_are_filled_from_a_looped_trace(trace: str) -> None:
    planned = plan(WorkloadSpec(trace, request_rate=50.0, duration_s=20.0, loop=True, burstiness=0.05))
    assert len(planned) == pytest.approx(1000, abs=5 * (1000 / 0.05) ** 0.5)
    assert planned[-1].at_s < 20.0
    assert {one.isl_tokens for one in planned} == set(range(100, 120))


def test_other_lengths_replace_those_of_the_source(trace: str) -> None:
    planned = plan(WorkloadSpec(trace, isl="77", osl="uniform:low=3,high=5"))
    assert {one.isl_tokens for one in planned} == {77}
    assert {one.osl_tokens for one in planned} == {3, 4, 5}


def test_limits_of_the_model_clip_and_are_told(trace: str) -> None:
    spec = WorkloadSpec(trace, max_isl=110, max_osl=20, max_model_len=120)
    planned = plan(spec)
    assert all(one.isl_tokens <= 110 and one.isl_tokens + one.osl_tokens <= 120 for one in planned)
    assert describe(spec, planned)["clipped"] == {"isl": 14, "osl": 9}


def test_a_synthetic_load_has_the_arrivals_and_lengths_in_words() -> None:
    planned = plan(
        WorkloadSpec("synthetic", arrivals="step:rates=1/9,every=50", isl="1000", osl="20", duration_s=100.0)
    )
    early = sum(one.at_s < 50 for one in planned)
    assert early == pytest.approx(50, abs=35) and len(planned) - early == pytest.approx(450, abs=110)
    assert {(one.isl_tokens, one.osl_tokens) for one in planned} == {(1000, 20)}
    vllm_like = plan(WorkloadSpec("synthetic", request_rate=5.0, isl="10", osl="2", num_prompts=100))
    assert len(vllm_like) == 100 and 10 < vllm_like[-1].at_s < 40


def test_a_preset_gives_a_number_or_a_duration() -> None:
    assert len(plan(WorkloadSpec("azure-conv-like", num_prompts=50))) == 50
    planned = plan(WorkloadSpec("azure-conv-like", duration_s=60.0, start_s=30.0))
    assert planned.span_s == 60.0 and all(0 <= one.at_s < 60 for one in planned)
    assert {one.phase for one in planned} == {"azure-conv-like"}
    later = plan(WorkloadSpec("azure-conv-like", duration_s=30.0, start_s=60.0))
    tail = [(round(one.at_s - 30, 9), one.isl_tokens) for one in planned if one.at_s >= 30]
    assert len(later) > 50 and tail == [(round(one.at_s, 9), one.isl_tokens) for one in later]


def test_a_scaled_shift_keeps_the_length_of_its_parts() -> None:
    planned = plan(WorkloadSpec("shift-step", duration_s=90.0, part_s=30.0, rate_scale=0.25))
    for number, phase in enumerate(("azure-code-like", "azure-conv-like", "reasoning-like")):
        assert {one.phase for one in planned if number * 30 <= one.at_s < number * 30 + 30} == {phase}


def test_texts_take_the_place_of_any_source_s_lengths(trace: str, sharegpt: str) -> None:
    planned = plan(WorkloadSpec(trace, sharegpt=sharegpt), words)
    assert [one.at_s for one in planned] == [2.0 * n for n in range(20)]
    assert all(one.isl_tokens == words(one.text) and one.osl_tokens == one.isl_tokens + 1 for one in planned)
    assert len({one.text for one in planned}) == 20
    preset = plan(WorkloadSpec("azure-conv-like", num_prompts=10, sharegpt=sharegpt, osl="5"), words)
    assert {one.osl_tokens for one in preset} == {5} and all(one.text for one in preset)
    spec = WorkloadSpec("synthetic", request_rate=9.0, num_prompts=30, sharegpt=sharegpt, max_osl=3)
    synthetic = plan(spec, words)
    assert {one.osl_tokens for one in synthetic} == {2, 3}


def test_sharegpt_alone_needs_a_rate_and_has_an_order_by_the_seed(sharegpt: str) -> None:
    planned = plan(WorkloadSpec(sharegpt, request_rate=10.0), words)
    assert len(planned) == 30 and len({one.isl_tokens for one in planned}) == 30
    other = plan(WorkloadSpec(sharegpt, request_rate=10.0, seed=1), words)
    assert [one.text for one in planned] != [one.text for one in other]
    assert len(plan(WorkloadSpec(sharegpt, request_rate=10.0, loop=True, num_prompts=70), words)) == 70
    short = plan(WorkloadSpec(sharegpt, request_rate=10.0, max_isl=4), words)
    assert sorted(one.isl_tokens for one in short) == [1, 2, 3, 4]
    assert describe(WorkloadSpec(sharegpt), short)["left_out"] == {"prompt too long": 26}


def test_the_description_can_be_stored_and_names_files_by_content(trace: str) -> None:
    spec = WorkloadSpec(trace, request_rate=math.inf, num_prompts=3, seed=5)
    told = describe(spec, plan(spec))
    assert told == {
        "spec": {"source": trace, "request_rate": "inf", "num_prompts": 3, "seed": 5},
        "format": "simple",
        "sha256": {trace: sha256(Path(trace))},
        "requests": 3,
        "span_s": 0.0,
        "input_tokens": 303,
        "output_tokens": 33,
        "left_out": {},
        "clipped": {},
    }
    assert msgspec.json.decode(msgspec.json.encode(told)) == told


SEEDED = """
import hashlib, sys
from dopd_loadgen.workload import WorkloadSpec, plan
for source, more in (("azure-code-like", {}), ("mooncake-like", {}), ("shift-ramp", {"part_s": 40.0})):
    planned = plan(WorkloadSpec(source, duration_s=100.0, seed=int(sys.argv[1]), **more))
    print(hashlib.sha256(repr(list(planned)).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_load_in_every_process() -> None:
    def hashes(seed: int, hash_seed: str) -> list[str]:
        command = [sys.executable, "-c", SEEDED, str(seed)]
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()

    first = hashes(7, "1")
    assert len(set(first)) == 3
    assert hashes(7, "2") == first
    assert not set(hashes(8, "1")) & set(first)


WRONG = [
    (WorkloadSpec("nothing-like"), "nothing-like", "neither a file nor one of synthetic, azure-code-like"),
    (WorkloadSpec("azure-code-like"), "--duration-s", "give --duration-s or --num-prompts"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, loop=True), "--loop", "is for trace files"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, turn=True), "--turn", "is for a trace that goes round"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, sort=True), "--sort", "is for trace files"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, format="azure"), "--format", "is for trace files"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, servegen_model="m"), "--servegen-model", "is for trace files"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, arrivals="poisson:rate=1"), "--arrivals", "for synthetic"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, part_s=3.0), "--part-s", "is for shift-step and shift-ramp"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, burstiness=0.5), "--burstiness", "that --request-rate draws"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, request_rate=1.0, rate_scale=2.0), "--rate-scale", "replaces"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, request_rate=math.inf), "--num-prompts", "say how many"),
    (WorkloadSpec("azure-code-like", duration_s=0.0), "--duration-s", "not above 0"),
    (WorkloadSpec("azure-code-like", duration_s=math.nan), "--duration-s", "not above 0"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, rate_scale=-1.0), "--rate-scale", "not above 0"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, start_s=-1.0), "--start-s", "not 0 or more"),
    (WorkloadSpec("azure-code-like", num_prompts=0), "--num-prompts", "not above 0"),
    (WorkloadSpec("azure-code-like", duration_s=1.0, request_rate=0.0), "--request-rate", "not above 0"),
    (WorkloadSpec("azure-code-like", duration_s=1e9), "--duration-s", "the limit is"),
    (WorkloadSpec("azure-code-like", duration_s=1e-6), "--duration-s", "no request of azure-code-like lies"),
    (WorkloadSpec("azure-code-like", num_prompts=5, isl="many"), "--isl", "'many' is none of"),
    (WorkloadSpec("azure-code-like", num_prompts=5, max_model_len=1), "--max-model-len", "no room"),
    (WorkloadSpec("azure-code-like", num_prompts=5, sharegpt="s", isl="5"), "--isl", "word by word"),
    (WorkloadSpec("azure-code-like", num_prompts=5, sharegpt="s"), "--tokenizer", "served model's tokenizer"),
    (WorkloadSpec("synthetic", duration_s=1.0, osl="1", request_rate=1.0), "--isl", "needs lengths"),
    (WorkloadSpec("synthetic", duration_s=1.0, isl="1", request_rate=1.0), "--osl", "needs lengths"),
    (WorkloadSpec("synthetic", duration_s=1.0, isl="1", osl="1"), "--arrivals", "either"),
    (WorkloadSpec("synthetic", num_prompts=9, isl="1", osl="1", arrivals="ramp:start=1,end=0,over=2"), "--num-prompts",
     "only [0-9] requests in ten years"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "where", "reason"), WRONG)
def test_wishes_that_contradict_are_refused_with_the_flag(spec: WorkloadSpec, where: str, reason: str) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        plan(spec)
    assert caught.value.where == where


def test_a_trace_that_is_too_short_names_the_flag_that_repeats_it(trace: str, sharegpt: str) -> None:
    with pytest.raises(LoadError, match=r"--duration-s: .* ends 39.9 s after --start-s, 60 s are asked for; --loop"):
        plan(WorkloadSpec(trace, duration_s=60.0))
    for spec in (
        WorkloadSpec(trace, num_prompts=21),
        WorkloadSpec(trace, num_prompts=21, request_rate=1.0),
        WorkloadSpec(sharegpt, num_prompts=31, request_rate=1.0),
        WorkloadSpec("azure-conv-like", num_prompts=31, sharegpt=sharegpt),
    ):
        with pytest.raises(LoadError, match=r"--num-prompts: the source has only (20|30) requests; --loop repeats"):
            plan(spec, words)
    with pytest.raises(LoadError, match=r"--duration-s: the source has only 20 requests"):
        plan(WorkloadSpec(trace, duration_s=60.0, request_rate=9.0))
    with pytest.raises(LoadError, match=r"--start-s: no request of .* at 100 s or later"):
        plan(WorkloadSpec(trace, start_s=100.0))
    with pytest.raises(LoadError, match="--loop: has no end"):
        plan(WorkloadSpec(trace, loop=True))


@pytest.mark.parametrize(
    ("change", "where"),
    [({"request_rate": None}, "--request-rate"), ({"isl": "5"}, "--isl"), ({"start_s": 3.0}, "--start-s"),
     ({"sort": True}, "--sort"), ({"servegen_model": "m"}, "--servegen-model")],
)  # fmt: skip
def test_flags_that_mean_nothing_for_a_file_of_texts_are_refused(
    sharegpt: str, change: dict[str, object], where: str
) -> None:
    with pytest.raises(LoadError) as caught:
        plan(replace(WorkloadSpec(sharegpt, request_rate=1.0), **change), words)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("change", "where"),
    [({"duration_s": None}, "--duration-s"), ({"loop": True}, "--loop"), ({"request_rate": 1.0}, "--request-rate"),
     ({"sort": True}, "--sort"), ({"servegen_model": "x"}, "--servegen-model")],
)  # fmt: skip
def test_flags_that_mean_nothing_for_servegen_are_refused(
    tmp_path: Path, change: dict[str, object], where: str
) -> None:
    path = tmp_path / "servegen_clients_10min.csv"
    path.write_text("model,client,start_s,rate,cv,pattern,arg1,arg2\nm,0,0,2,1,Gamma,1,1\n")
    (tmp_path / "servegen_lengths_6h.csv").write_text(
        "model,start_s,field,token_lo,token_hi,prob\nm,0,input_tokens,5,9,1\nm,0,output_tokens,5,9,1\n"
    )
    spec = WorkloadSpec(str(path), duration_s=30.0, start_s=100.0)
    planned = plan(spec)
    assert len(planned) == pytest.approx(60, abs=40) and planned[0].at_s < 10 < planned[-1].at_s < 30
    assert len(describe(spec, planned)["sha256"]) == 2
    with pytest.raises(LoadError) as caught:
        plan(replace(spec, **change))
    assert caught.value.where == where


def test_every_flag_and_preset_is_on_the_user_s_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
    for one in fields(WorkloadSpec):
        assert one.name == "source" or f"--{one.name.replace('_', '-')}" in page, one.name
    for name in names():
        assert f"`{name}`" in page, name
