"""The real traces read as their published statistics say, and the presets' stored figures are theirs."""

from pathlib import Path

import pytest

from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.figures import figures_of
from dopd_loadgen.workload.fit import azure_code
from dopd_loadgen.workload.presets import table
from dopd_loadgen.workload.read import Format, Trace, read_trace
from dopd_loadgen.workload.servegen import read_servegen
from dopd_loadgen.workload.stats import stats_of
from dopd_loadgen.workload.write_toml import rounded

TRACES = Path(__file__).parents[2].parent / "shared" / "data" / "traces"
pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason=f"no real traces in {TRACES}")


# rows; requests/s, fullest minute, dispersion at 1, 10, 60 s, gap CV; ISL mean, p50, p99; OSL mean, p50, p99
SAID: dict[str, tuple[Format, int, tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    "azure_llm_2023_code.csv.gz": (
        "azure", 7148, (3.12, 10.53, 13.0, 70, 160, 12.7), (2028, 1460, 7436), (27, 13, 249)
    ),
    "azure_llm_2023_conv.csv.gz": (
        "azure", 13828, (5.93, 8.45, 1.3, 3.5, 15, 1.08), (1203, 1016, 4122), (201, 115, 598)
    ),
    "mooncake_conversation_trace.jsonl.gz": (
        "mooncake", 7689, (3.26, 4.12, 7.6, 2.0, 2.9, 3.0), (12449, 7284, 89976), (348, 356, 1166)
    ),
    "mooncake_synthetic_trace.jsonl.gz": (
        "mooncake", 2600, (3.82, 4.32, 1.1, 1.2, 1.0, 1.01), (13186, 5823, 57555), (184, 135, 776)
    ),
    "ragpulse_trace.jsonl.gz": (
        "ragpulse", 4929, (0.012, 0.17, 1.0, 1.1, 1.8, 2.7), (2939, 3143, 5235), (277, 227, 868)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_real_trace_has_its_published_statistics(name: str) -> None:
    format, rows, arrivals, isl, osl = SAID[name]
    trace = read_trace(TRACES / name)
    assert (trace.format, len(trace.planned), trace.left_out) == (format, rows, {})
    stats = stats_of(trace.planned)
    # The published ones were rounded to two digits, and their last window was cut differently.
    found = (stats.rate_rps, stats.peak_minute_rps, *stats.dispersion.values(), stats.gap_cv)
    assert found == pytest.approx(arrivals, rel=0.035, abs=0.05)
    assert (stats.isl.mean, stats.isl.p50, stats.isl.p99) == pytest.approx(isl, rel=0.001)
    assert (stats.osl.mean, stats.osl.p50, stats.osl.p99) == pytest.approx(osl, rel=0.02)


def test_mooncake_blocks_cover_every_prompt() -> None:
    trace = read_trace(TRACES / "mooncake_conversation_trace.jsonl.gz")
    assert all(len(one.blocks) == -(-one.isl_tokens // 512) for one in trace.planned)
    assert stats_of(trace.planned).repeated_blocks == pytest.approx(0.3504, abs=1e-4)


def test_servegen_windows_have_the_published_rate_and_lengths() -> None:
    path = TRACES / "servegen_clients_10min.csv.gz"
    trace = read_servegen(path, "language/m-large", generator(0, "x"), 0.0, 1200.0)
    stats = stats_of(trace.planned, 1200.0)
    # 212.78 and 179.70 requests/s in the two windows; clients of CV 2 make the sum stray by a few percent.
    assert stats.rate_rps == pytest.approx((212.78 + 179.70) / 2, rel=0.04)
    assert stats.isl.mean == pytest.approx(359.8, rel=0.03) and stats.osl.mean == pytest.approx(301.1, rel=0.03)
    assert 20 < len({one.phase for one in trace.planned}) < 60


@pytest.mark.parametrize("name", ["azure-code-like", "azure-conv-like", "mooncake-like"])
def test_the_presets_stored_figures_are_those_of_their_trace(name: str) -> None:
    stored = table()["presets"][name]
    trace: Trace = read_trace(TRACES / stored["trace"])
    found = rounded(figures_of(trace.planned, trace.planned[-1].at_s))
    assert {figure: found[figure] for figure in stored["fit"]["real"]} == stored["fit"]["real"]


@pytest.mark.slow
def test_fitting_again_gives_the_stored_preset() -> None:
    assert rounded(azure_code(TRACES)) == table()["presets"]["azure-code-like"]
