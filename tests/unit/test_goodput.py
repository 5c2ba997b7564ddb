"""`--goodput`: vLLM's form, milliseconds, and presets by name."""

import pytest

from dopd.errors import LoadError
from dopd_loadgen.goodput import NO_TARGET_S, PRESETS, Goodput, parse_goodput


def test_targets_are_given_in_milliseconds() -> None:
    assert parse_goodput(["ttft:500", "tpot:50.5", "e2el:9000"]) == Goodput(0.5, 0.0505, 9.0)


def test_a_target_that_is_not_named_is_met_by_everything() -> None:
    assert parse_goodput(["tpot:50"]) == Goodput(NO_TARGET_S, 0.05, None)


def test_a_preset_stands_for_its_targets() -> None:
    assert parse_goodput(["mlperf-llama2-70b-interactive"]) == Goodput(0.45, 0.04)
    assert all(parse_goodput([name]).ttft_s > parse_goodput([name]).tpot_s for name in PRESETS)


@pytest.mark.parametrize(
    "words",
    [["ttft"], ["ttft:"], ["ttft:x"], ["ttft:0"], ["ttft:-5"], ["ttft:nan"], ["ttft:inf"], ["itl:5"],
     ["ttft:5", "ttft:6"], ["mlperf-llama2-70b", "ttft:5"], ["no-such-preset"]],
)  # fmt: skip
def test_anything_else_is_refused_by_name(words: list[str]) -> None:
    with pytest.raises(LoadError, match="--goodput"):
        parse_goodput(words)
