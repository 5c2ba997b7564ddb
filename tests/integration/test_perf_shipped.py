"""The shipped profiles against the data that they come from: each figure is what a fit gives today."""

import csv
import gzip
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from dopd.errors import ConfigError
from dopd.perf.fit import errors, fit, non_negative
from dopd.perf.points import Point, PointsFile, checked, read_table
from dopd.perf.profile import PROFILES, Profile
from tests.testbed import DATA, DYNAMIC, MIXED, TARGET, UNIFORM, points, windows

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent: nothing to refit the shipped profiles to")

META = {"name": "refit", "source": "s", "gpus": 1, "kv_token_bytes": 1, "kv_total_tokens": 1_000_000}
BESIDE_S = 15e-3
"""Of a request's time to the first token, what no step takes (workloads.md 3.1)."""
COEFFICIENTS = (
    "prefill_fixed_s", "prefill_token_s", "prefill_token2_s", "decode_fixed_s", "decode_request_s", "decode_context_s",
)  # fmt: skip
LARGE = ("large_fixed_s", "large_request_s", "large_context_s")
SUMS = "composed_prefill_decode.csv.gz"


def same(shipped: Profile, refit: Mapping[str, float], names: tuple[str, ...] = COEFFICIENTS) -> None:
    """Within what the shipped figures were rounded to."""
    for name in names:
        assert getattr(shipped, name) == pytest.approx(refit[name], rel=2e-3, abs=1e-12), name


def coefficients(profile: Profile) -> dict[str, float]:
    return {name: getattr(profile, name) for name in COEFFICIENTS}


def corrected(sums: Profile) -> dict[str, float]:
    """How measured engines differ from sums of their kernels' times (workloads.md 3.1)."""
    return {
        "prefill_fixed_s": 1.3 * sums.prefill_fixed_s,
        "prefill_token_s": 1.3 * sums.prefill_token_s,
        "prefill_token2_s": 1.3 * sums.prefill_token2_s,
        "decode_fixed_s": sums.decode_fixed_s + 1.1e-3,
        "decode_request_s": sums.decode_request_s + 24e-6,
        "decode_context_s": sums.decode_context_s,
    }


def sums(gpu: str, model: str, tp: int, dtype: str) -> Profile:
    return fit(read_table(DATA / SUMS, META, gpu=gpu, model=model, tp=tp, dtype=dtype))


def test_the_measured_profile_is_its_fit() -> None:
    every = read_table(DATA / "e2e_prefill_decode.csv", META, gpu="H200", model="Llama-3.1-8B", tp=1, dtype="fp8")
    # Beyond 289 a step hardly grows any more: one line cannot tell both, and 256 is the most that run at once.
    usual = replace(every, points=[p for p in every.points if p.phase == "prefill" or p.batch_requests <= 289])
    refit, shipped = fit(usual), PROFILES["h200-llama-3.1-8b-fp8-tp1"]
    same(shipped, {**coefficients(refit), "prefill_fixed_s": refit.prefill_fixed_s - BESIDE_S})
    assert shipped.arrival_s == BESIDE_S
    assert shipped.fits == refit.fits and shipped.grid == refit.grid
    assert fit(every).fits[1].worst_pct > 30


@pytest.mark.parametrize(
    ("name", "gpu", "model", "tp", "dtype"),
    [
        ("h100-llama-70b-fp8-tp2", "H100-80GB", "Llama-3-70B", 2, "fp8"),
        ("a100-qwen2.5-14b-bf16-tp1", "A100-80GB", "Qwen2.5-14B", 1, "bf16"),
        ("a100-qwen2.5-32b-bf16-tp2", "A100-80GB", "Qwen2.5-32B", 2, "bf16"),
    ],
)
def test_a_composed_profile_is_the_corrected_fit_of_its_sums(
    name: str, gpu: str, model: str, tp: int, dtype: str
) -> None:
    refit, shipped = sums(gpu, model, tp, dtype), PROFILES[name]
    same(shipped, corrected(refit))
    assert shipped.arrival_s == BESIDE_S
    assert shipped.fits == refit.fits and shipped.grid == refit.grid and shipped.gpus == tp
    with (DATA / "kv_capacity.csv").open() as file:
        known = [row for row in csv.DictReader(file) if (row["gpu"], row["model"]) == (gpu, model)]
    capacity = next(row for row in known if (row["tp"], row["dtype"]) == (str(tp), dtype))
    assert shipped.kv_token_bytes == int(capacity["kv_bytes_per_token"])
    assert shipped.kv_total_tokens == int(capacity["kv_capacity_tokens_est"])


@pytest.mark.parametrize(("name", "model", "tp"), [("13b", "facebook/opt-13b", "1"), ("66b", "facebook/opt-66b", "4")])
def test_distserves_profiles_are_its_fits_with_its_overheads(name: str, model: str, tp: str) -> None:
    with (DATA / "distserve_fits.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["model"], r["tp"], r["engine"]) == (model, tp, "distserve")]
    prefill, small, large = ([float(row[key]) for key in ("c0_s", "c1", "c2")] for row in rows)
    assert [row["range"] for row in rows] == ["all", "batch<95", "batch>=95"]
    refit = dict(zip((*COEFFICIENTS, *LARGE), (*prefill, *small, *large), strict=True))
    refit["prefill_fixed_s"] += 1e-3  # PP ms, here 1
    for key in ("prefill_fixed_s", "decode_fixed_s", "large_fixed_s"):
        refit[key] += 2e-3
    for key in ("prefill_token_s", "decode_context_s", "large_context_s"):
        refit[key] += 1e-7
    shipped = PROFILES[f"a100-opt-{name}-tp{tp}"]
    same(shipped, refit, (*COEFFICIENTS, *LARGE))
    assert shipped.large_batch_requests == 95 and shipped.max_model_len == 2048


@pytest.mark.parametrize(("system", "name"), [("A100 DGX", "a100-opt-13b-tp1"), ("H100 DGX", "dopd-h100-70b-d-tp2")])
def test_a_link_is_what_was_measured(system: str, name: str) -> None:
    with (DATA / "network.csv").open() as file:
        rows = [
            r for r in csv.DictReader(file) if (r["system"], r["op"], r["scope"]) == (system, "send_recv", "intra-node")
        ]
    sizes, times = (np.array([float(row[key]) for row in rows]) for key in ("bytes", "latency_s"))
    large = sizes >= 1e5
    fixed_s, byte_s = relative([np.ones(large.sum()), sizes[large]], times[large])
    assert PROFILES[name].transfer_fixed_s == pytest.approx(fixed_s, rel=0.02)
    assert PROFILES[name].transfer_bytes_per_s == pytest.approx(1 / byte_s, rel=0.02)


def engines(table: str) -> list[tuple[str, str, str, str]]:
    opened = gzip.open if table.endswith(".gz") else open
    with opened(DATA / table, "rt") as file:
        return sorted({(r["gpu"], r["model"], r["tp"], r["dtype"]) for r in csv.DictReader(file)})


@pytest.mark.parametrize("table", ["e2e_prefill_decode.csv", SUMS])
def test_every_real_engine_passes_and_none_does_in_the_wrong_unit(table: str) -> None:
    for gpu, model, tp, dtype in engines(table):
        file = read_table(DATA / table, META, gpu=gpu, model=model, tp=int(tp), dtype=dtype)
        for factor, reason in ((1e3, "milliseconds taken for seconds"), (1e-3, "seconds taken for milliseconds")):
            wrong = [replace(point, latency_s=factor * point.latency_s) for point in file.points]
            with pytest.raises(ConfigError, match=reason):
                checked(replace(file, points=wrong))


def test_corrected_sums_are_near_the_engine_that_was_measured_end_to_end() -> None:
    of_sums = sums("H200", "Llama-3.1-8B", 1, "fp8")
    # What was measured is the time to the first token, all of it.
    told = replace(of_sums, **corrected(of_sums))
    told = replace(told, prefill_fixed_s=told.prefill_fixed_s + BESIDE_S)
    every = read_table(DATA / "e2e_prefill_decode.csv", META, gpu="H200", model="Llama-3.1-8B", tp=1, dtype="fp8")
    prefill, decode = errors(told, replace(every, points=[p for p in every.points if p.batch_requests <= 289]))
    print(prefill, decode)
    assert prefill.mape_pct < 20 and decode.mape_pct < 10


# ------------------------------------------------------------------------------------------------ the authors' own pair


STATIC = UNIFORM + tuple(run for run in MIXED if run != TARGET)
TESTBED = DATA / "dopd_testbed_5s.csv.gz"


def relative(columns: list[np.ndarray], times: np.ndarray) -> list[float]:
    """Non-negative least squares on the relative error, as `fit` does it, for other columns than its three."""
    matrix = np.array(columns, dtype=float).T
    scale = matrix.max(axis=0)
    return [float(c) for c in non_negative(matrix / scale / times[:, None], np.ones(len(times))) / scale]


def of(phase: str, runs: tuple[int, ...]) -> list[Point]:
    return [point for point in points(windows(TESTBED, runs)) if point.phase == phase]


def columns(found: list[Point], *terms: Callable[[Point], float]) -> list[np.ndarray]:
    return [np.array([term(point) for point in found], dtype=float) for term in terms]


def told(name: str, found: list[Point]) -> None:
    shipped = PROFILES[name]
    assert shipped.fits == errors(shipped, PointsFile({}, found))


def test_the_authors_prefill_is_fitted_without_the_run_to_predict() -> None:
    found, shipped = of("prefill", STATIC), PROFILES["dopd-h100-70b-p-tp1"]
    tp1 = sums("H100-80GB", "Llama-3-70B", 1, "fp8")
    assert shipped.prefill_token2_s == pytest.approx(tp1.prefill_token2_s, rel=2e-3)
    rest = np.array([p.latency_s - shipped.prefill_token2_s * p.prompt_square_tokens2 for p in found])
    # Two lengths tell two coefficients; the relative error is that of the whole.
    whole = np.array([p.latency_s for p in found])
    matrix = np.array(columns(found, lambda p: 1.0, lambda p: p.prompt_tokens)).T
    fixed_s, token_s = np.linalg.lstsq(matrix / whole[:, None], rest / whole, rcond=None)[0]
    assert shipped.prefill_fixed_s == pytest.approx(fixed_s, rel=0.02)
    assert shipped.prefill_token_s == pytest.approx(token_s, rel=0.03)
    same(shipped, corrected(tp1), ("decode_fixed_s", "decode_request_s", "decode_context_s"))
    told(shipped.name, found)


def test_the_authors_decode_is_fitted_without_the_run_to_predict() -> None:
    found, shipped = of("decode", STATIC), PROFILES["dopd-h100-70b-d-tp2"]
    times = np.array([p.latency_s for p in found])
    refit = relative(columns(found, lambda p: 1.0, lambda p: p.batch_requests, lambda p: p.context_tokens), times)
    same(shipped, dict(zip(COEFFICIENTS[3:], refit, strict=True)), COEFFICIENTS[3:])
    tp2 = sums("H100-80GB", "Llama-3-70B", 2, "fp8")
    same(shipped, {key: 1.3 * value for key, value in coefficients(tp2).items()}, COEFFICIENTS[:3])
    told(shipped.name, found)


def test_the_authors_dynamic_runs_have_a_steeper_decode() -> None:
    found, shipped = of("decode", DYNAMIC), PROFILES["dopd-h100-70b-d-tp2-dynamic"]
    times = np.array([p.latency_s for p in found])
    fixed_s, context_s = relative(columns(found, lambda p: 1.0, lambda p: p.context_tokens), times)
    same(shipped, {"decode_fixed_s": fixed_s, "decode_request_s": 0.0, "decode_context_s": context_s}, COEFFICIENTS[3:])
    told(shipped.name, found)
    static = PROFILES["dopd-h100-70b-d-tp2"]
    assert replace(shipped, **coefficients(static), name="", source="", fits=(), grid=None) == replace(
        static, name="", source="", fits=(), grid=None
    )


def test_the_data_are_those_that_the_figures_are_from() -> None:
    assert (len(of("prefill", STATIC)), len(of("decode", DYNAMIC))) == (78, 111)
