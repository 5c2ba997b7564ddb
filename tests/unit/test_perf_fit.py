"""Fitted profiles: exact where the points are, honest about the error, and refused where points cannot tell."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.errors import ConfigError
from dopd.perf.fit import errors, fit, non_negative
from dopd.perf.model import beyond, step_s
from dopd.perf.points import Point, PointsFile, write_points
from dopd.perf.profile import PROFILES, Profile, named

META = {"name": "x", "source": "t", "gpus": 2, "kv_token_bytes": 1000, "kv_total_tokens": 90_000, "max_running": 99}
H200 = PROFILES["h200-llama-3.1-8b-fp8-tp1"]
OPT = PROFILES["a100-opt-13b-tp1"]
COEFFICIENTS = (
    "prefill_fixed_s", "prefill_token_s", "prefill_token2_s", "decode_fixed_s", "decode_request_s", "decode_context_s",
)  # fmt: skip
LARGE = ("large_fixed_s", "large_request_s", "large_context_s")


def prefill(profile: Profile, tokens: int) -> Point:
    return Point("prefill", tokens, tokens**2, 1, 0, step_s(profile, tokens, tokens**2, 0, 0))


def decode(profile: Profile, batch: int, each: int) -> Point:
    return Point("decode", 0, 0, batch, batch * each, step_s(profile, 0, 0, batch, batch * each))


def grid(profile: Profile, batches: Sequence[int] = (1, 8, 64)) -> list[Point]:
    return [
        *(prefill(profile, tokens) for tokens in (64, 256, 1024, 4096)),
        *(decode(profile, batch, each) for batch in batches for each in (100, 1000)),
    ]


@pytest.mark.parametrize("true", PROFILES.values(), ids=PROFILES)
def test_the_coefficients_that_made_the_points_come_back(true: Profile) -> None:
    found = fit(PointsFile(META, grid(true)))
    for name in COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6)
    assert [each.phase for each in found.fits] == ["prefill", "decode"]
    assert all(each.worst_pct == 0 and each.r2 == 1 for each in found.fits)
    assert (found.name, found.gpus, found.kv_total_tokens, found.max_running) == ("x", 2, 90_000, 99)


def test_large_batches_have_coefficients_of_their_own() -> None:
    points = grid(OPT, (1, 50, 94, 95, 200, 400))
    found = fit(PointsFile(META | {"large_batch_requests": 95}, points))
    for name in (*COEFFICIENTS, *LARGE):
        assert getattr(found, name) == pytest.approx(getattr(OPT, name), rel=1e-6)
    one_range = fit(PointsFile(META, points))
    assert one_range.fits[1].mape_pct > 1 > found.fits[1].mape_pct


def test_the_second_range_begins_with_its_first_batch() -> None:
    assert step_s(OPT, 0, 0, 94, 0) == pytest.approx(OPT.decode_fixed_s + 94 * OPT.decode_request_s)
    assert step_s(OPT, 0, 0, 95, 0) == pytest.approx(OPT.large_fixed_s + 95 * OPT.large_request_s)
    assert step_s(OPT, 10, 100, 95, 0) == pytest.approx(
        max(OPT.prefill_fixed_s, OPT.large_fixed_s)
        + 10 * OPT.prefill_token_s
        + 100 * OPT.prefill_token2_s
        + 95 * OPT.large_request_s
    )


def test_the_error_is_that_of_the_noise_and_is_kept() -> None:
    rng = random.Random("noise")
    points = [replace(p, latency_s=p.latency_s * rng.uniform(0.9, 1.1)) for p in grid(H200, (1, 4, 16, 64, 256)) * 5]
    found = fit(PointsFile(META, points))
    for each in found.fits:
        assert 3 < each.mape_pct < 7 and each.mape_pct < each.worst_pct < 20
    assert found.fits == errors(found, PointsFile(META, points))


def test_mixed_steps_are_predicted_and_not_fitted() -> None:
    mixed = Point("mixed", 256, 256**2, 8, 8000, 1.5 * step_s(H200, 256, 256**2, 8, 8000))
    found = fit(PointsFile(META, [*grid(H200), mixed]))
    assert found.fits[2].phase == "mixed" and found.fits[2].points == 1
    assert found.fits[2].mape_pct == pytest.approx(100 / 3, abs=0.1)
    assert found.prefill_fixed_s == pytest.approx(H200.prefill_fixed_s)


FEW = {
    "no prefill": ([p for p in grid(H200) if p.phase == "decode"], "0 different prefill steps"),
    "no decode": ([p for p in grid(H200) if p.phase == "prefill"], "0 different decode steps"),
    "one prompt again and again": ([prefill(H200, 100)] * 9 + grid(H200)[4:], "1 different prefill steps"),
    "one context": ([*grid(H200)[:4], *(decode(H200, b, 500) for b in (1, 2, 4, 8))], "do not vary independently"),
    "one batch": ([*grid(H200)[:4], *(decode(H200, 4, c) for c in (100, 200, 300, 400))], "do not vary independently"),
}


@pytest.mark.parametrize(("points", "reason"), FEW.values(), ids=FEW)
def test_points_that_cannot_tell_the_coefficients_are_refused(points: list[Point], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"grid.csv: rows: .*{reason}"):
        fit(PointsFile(META, points, "grid.csv"))


def test_a_second_range_without_points_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 different decode of 95 requests and more steps"):
        fit(PointsFile(META | {"large_batch_requests": 95}, grid(H200)))


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 4), min_size=4, max_size=12))
def test_no_better_non_negative_solution_is_near(rows: list[tuple[float, float, float, float]]) -> None:
    matrix, target = np.array(rows)[:, :3], np.array(rows)[:, 3]
    best = non_negative(matrix, target)
    assert (best >= 0).all()
    least = float(((matrix @ best - target) ** 2).sum())
    rng = np.random.Generator(np.random.PCG64(7))
    for other in (np.maximum(best + rng.normal(0, scale, 3), 0) for scale in (1e-3, 0.1, 1) for _ in range(20)):
        assert float(((matrix @ other - target) ** 2).sum()) >= least - 1e-9


# ------------------------------------------------------------------------------------------------------------- files


def test_a_use_far_beyond_the_grid_is_flagged_with_its_reason() -> None:
    found = fit(PointsFile(META, grid(H200)))
    assert beyond(found, prompt_tokens=4096, batch_requests=64, context_tokens=64_000) == []
    assert beyond(found, prompt_tokens=8192) == []
    assert beyond(found, prompt_tokens=8193) == ["x: prompt_tokens 8193 in a step, measured up to 4096"]
    assert len(beyond(found, 1e6, 1e6, 1e6)) == 3
    assert beyond(OPT, 1e6) == []


def test_a_profile_is_named_by_its_file(tmp_path: Path) -> None:
    write_points(tmp_path / "mine.csv", PointsFile(META, grid(H200)))
    assert named(str(tmp_path / "mine.csv")).decode_fixed_s == pytest.approx(H200.decode_fixed_s)
    text = (Path(__file__).parents[2] / "shared/dopd/perf/profiles/a100-opt-13b-tp1.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('name = "a100-opt-13b-tp1"', 'name = "mine"'))
    assert named(str(tmp_path / "mine.toml")) == replace(OPT, name="mine")


BAD = {
    "milliseconds": ("decode_fixed_s = 0.0219347", "decode_fixed_s = 21.9347", "decode_…_s.*milliseconds taken"),
    "milliseconds of prefill": ("prefill_token_s = 0.000102012", "prefill_token_s = 0.102012", "prefill_…_s.*slower"),
    "too fast": ("decode_fixed_s = 0.0219347", "decode_fixed_s = 0.0", "decode_…_s.*faster"),
    "milliseconds per token": (
        "decode_context_s = 7.26936e-07",
        "decode_context_s = 7.26936e-04",
        "decode_…_s.*slower",
    ),
    "negative": ("prefill_token2_s = 7", "prefill_token2_s = -7", "prefill_token2_s: is -7"),
    "no number": ("decode_request_s = 3.8507e-05", "decode_request_s = nan", "decode_request_s: is nan"),
    "a text": ("gpus = 1", 'gpus = "1"', "gpus: Expected `int`"),
    "no GPU": ("gpus = 1", "gpus = 0", "gpus: is 0; give a number above 0"),
    "no link": ("transfer_bytes_per_s = 286000000000.0", "transfer_bytes_per_s = 0", "no KV would ever arrive"),
    "a slip": ("max_running", "max_runing", "max_runing: unknown; did you mean max_running"),
    "a missing key": ("kv_token_bytes = 819200\n", "", "missing required field `kv_token_bytes`"),
    "no TOML": ("gpus = 1", "gpus is 1", "cannot be read"),
}


@pytest.mark.parametrize(("old", "new", "reason"), BAD.values(), ids=BAD)
def test_a_bad_coefficient_file_is_refused_with_its_key(old: str, new: str, reason: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "shared/dopd/perf/profiles/a100-opt-13b-tp1.toml").read_text()
    assert old in text
    (tmp_path / "bad.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=rf"bad\.toml: {reason}|bad\.toml: .*{reason}"):
        named(str(tmp_path / "bad.toml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.toml", "none.csv"):
        with pytest.raises(ConfigError, match=rf"{name}: file: cannot be read"):
            named(str(tmp_path / name))
