"""`dopd profile` and `dopd profile check` as commands on a real engine: the files are whole, the figures make sense.

Nothing is said of times here but their order of magnitude: other work may be on the machine.
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from dopd.perf.model import step_s
from dopd.perf.points import read_points
from dopd.perf.profile import named

pytestmark = pytest.mark.timeout(900)


def dopd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dopd.cli", *words], capture_output=True, text=True, timeout=400, check=False
    )


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile") / "tiny.csv"
    limits = ("--grid", "small", "--grid-prompt", "600", "--grid-batch", "8", "--repeats", "1")
    done = dopd("profile", "--engine", "vllm", "--model", str(model), *limits, "-o", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_file_says_what_was_measured_on_what(measured: Path) -> None:
    file = read_points(measured)
    assert {point.phase for point in file.points} == {"prefill", "decode", "mixed"}
    assert (file.meta["kv_token_bytes"], file.meta["max_running"], file.meta["max_step_tokens"]) == (4096, 16, 512)
    assert file.meta["kv_total_tokens"] == 16_352
    assert str(file.meta["engine"]).startswith("vLLM")
    assert "cores" in str(file.meta["gpu"]) or str(file.meta["gpu"]).startswith("NVIDIA")


def test_the_fit_has_the_right_order_of_magnitude(measured: Path) -> None:
    file, profile = read_points(measured), named(str(measured))
    ratios = []
    for point in file.points:
        decodes = 0 if point.phase == "prefill" else point.batch_requests
        told_s = step_s(profile, point.prompt_tokens, point.prompt_square_tokens2, decodes, point.context_tokens)
        ratios.append(told_s / point.latency_s)
    assert 1 / 3 < median(ratios) < 3
    assert all(math.isfinite(fit.mape_pct) for fit in profile.fits)


def test_engine_and_emulation_can_be_compared(measured: Path, model: Path, tmp_path: Path) -> None:
    load = ("--arrivals", "poisson:rate=5", "--isl", "uniform:low=50,high=500", "--osl", "16", "--num-prompts", "20")
    done = dopd("profile", "check", str(measured), "--engine", "vllm", "--model", str(model), "--runs", "2",
                "-o", str(tmp_path), *load)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr[-2000:]
    assert ("within the limits" in done.stdout) == (done.returncode == 0)
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["passed"] == (done.returncode == 0)
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert len(row["engine_s"]) == len(row["emulation_s"]) == 2
        assert math.isfinite(row["error"]) and -0.9 < row["error"] < 10
    assert {"cdf-ttft.svg", "cdf-tpot.svg"} <= {path.name for path in tmp_path.iterdir()}
