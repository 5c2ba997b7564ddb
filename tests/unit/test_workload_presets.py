"""Presets need no trace, generate what their stored fit says, and are as near to the traces as documented."""

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dopd.errors import LoadError
from dopd_loadgen.workload import WorkloadSpec, plan
from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.figures import compared, figures_of, minute_figures, tokens_per_minute
from dopd_loadgen.workload.fit import main
from dopd_loadgen.workload.presets import load_of, names, preset, table
from dopd_loadgen.workload.write_toml import rounded, written

# The trace's length in seconds is not stored: it is how many requests it has over its rate, and these are its rows.
SPANS_S = {"azure-code-like": 2290.562859, "azure-conv-like": 2334.016884, "mooncake-like": 2357.999}
FITTED = list(table()["presets"])
# Where the model is known to be off by more, and why (docs/workloads.md).
KNOWN = {
    ("mooncake-like", "dispersion_10s"): 30,  # the recorder's 3 s batches
    ("burstgpt-like", "peak_to_mean"): 35,
    ("reasoning-like", "peak_to_mean"): 25,
}


@pytest.mark.parametrize(
    "name", ["azure-code-like", "azure-conv-like", pytest.param("mooncake-like", marks=pytest.mark.slow)]
)
def test_a_preset_generates_what_its_stored_fit_says(name: str) -> None:
    made, fit = load_of(table()["presets"][name]), table()["presets"][name]["fit"]
    found = [figures_of(made(generator(seed, "fit"), SPANS_S[name]), SPANS_S[name]) for seed in range(fit["seeds"])]
    again = compared(fit["real"], found)
    for part in ("generated", "seed_sd", "error_percent"):
        # The span and the trace's figures are stored to five digits.
        assert again[part] == pytest.approx(fit[part], rel=2e-3, abs=2e-2), part


@pytest.mark.slow
def test_the_burstgpt_preset_generates_the_tokens_its_stored_fit_says() -> None:
    made, fit, minutes = preset("burstgpt-like"), table()["presets"]["burstgpt-like"]["fit"], 6720
    found = [
        minute_figures(tokens_per_minute(made(generator(seed, "fit"), 60.0 * minutes), minutes))
        for seed in range(fit["seeds"])
    ]
    assert compared(fit["real"], found)["generated"] == pytest.approx(fit["generated"], rel=2e-3, abs=2e-2)


@pytest.mark.parametrize("name", FITTED)
def test_no_preset_is_further_from_its_trace_than_is_documented(name: str) -> None:
    fit = table()["presets"][name]["fit"]
    for figure, error in fit["error_percent"].items():
        assert abs(error) <= KNOWN.get((name, figure), 15), figure
        assert error == pytest.approx(100 * (fit["generated"][figure] / fit["real"][figure] - 1), abs=0.1)


@pytest.mark.parametrize("name", [*FITTED, "shift-step", "shift-ramp"])
def test_every_preset_makes_a_load_that_can_be_sent(name: str) -> None:
    planned = preset(name, part_s=40.0)(generator(0, "x"), 40_000.0 if name == "burstgpt-like" else 130.0)
    times = [one.at_s for one in planned]
    assert len(planned) > 5 and times == sorted(times)
    assert all(one.isl_tokens >= 1 and one.osl_tokens >= 1 for one in planned)
    assert any(one.blocks for one in planned) == (name == "mooncake-like")
    assert all(one.phase for one in planned)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(LoadError, match=r"no such preset; there are azure-code-like, .*shift-ramp"):
        preset("azure")
    assert names()[-2:] == ["shift-step", "shift-ramp"]


def test_azure_code_like_has_whole_minutes_without_a_request() -> None:
    planned = plan(WorkloadSpec("azure-code-like", duration_s=7200.0))
    per_minute = np.bincount([int(one.at_s / 60) for one in planned], minlength=120)
    assert 3 <= (per_minute == 0).sum() <= 40
    assert per_minute.max() > 3 * per_minute.mean()


def test_a_shift_asks_for_the_same_gpu_time_but_divides_it_otherwise() -> None:
    shift = table()["shift"]
    seconds = {name: (rate, *shift["prefill_decode_gpu_s"][name]) for name, rate in shift["rates_rps"].items()}
    totals = [rate * (prefill + decode) for rate, prefill, decode in seconds.values()]
    assert totals == pytest.approx([4.0, 4.0, 4.0], rel=1e-3)
    ratios = [prefill / decode for _, prefill, decode in seconds.values()]
    assert ratios[0] > 8 and 0.7 < ratios[1] < 1.4 and ratios[2] < 0.125


def test_a_shift_by_steps_and_by_ramps_has_its_parts_where_they_belong() -> None:
    code, conv, reasoning = table()["shift"]["rates_rps"].values()
    step = plan(WorkloadSpec("shift-step", duration_s=600.0, part_s=200.0))
    expected = [200 * code, 200 * conv, 200 * reasoning]
    for start_s, rate in zip((0, 200, 400), expected, strict=True):
        inside = [one for one in step if start_s <= one.at_s < start_s + 200]
        assert len({one.phase for one in inside}) == 1
        assert len(inside) == pytest.approx(rate, abs=5 * math.sqrt(rate))
    ramp = plan(WorkloadSpec("shift-ramp", duration_s=600.0, part_s=200.0))
    middle = [one.phase for one in ramp if 190 <= one.at_s < 210]
    assert middle.count("azure-code-like") / len(middle) == pytest.approx(code / (code + conv), abs=0.15)
    assert {one.phase for one in ramp if one.at_s < 95} == {"azure-code-like"}


def test_what_is_written_as_toml_is_read_back() -> None:
    some: dict[str, Any] = {
        "a": {
            "word": "x",
            "list": [1, 2.5, [0.1, 1e-7]],
            "inner": {"whole": 3, "big": 123456.0},
            "deep": {"er": {"b": 1.0}},
        }
    }
    assert tomllib.loads("\n".join(written(some))) == some
    assert rounded({"a": [1.2345678, 12, "x"], "b": 123456.7}) == {"a": [1.2346, 12, "x"], "b": 123460.0}


def test_fitting_without_the_traces_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path / 'azure_llm_2023_code.csv.gz'}: cannot be read: No such file" in capsys.readouterr().err
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
