"""The figures of a load are those of their definitions, and `trace describe` shows them as a table and a picture."""

from pathlib import Path

import numpy as np
import pytest

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload.description import main
from dopd_loadgen.workload.stats import repeated_blocks, stats_of


def test_the_figures_of_a_small_load_are_those_counted_by_hand() -> None:
    at_s = [0.0, 0.5, 1.0, 59.0, 61.0, 119.5]
    planned = [Planned(n, at, 100 * (n + 1), n + 1) for n, at in enumerate(at_s)]
    stats = stats_of(planned, 120.0)
    assert (stats.requests, stats.rate_rps, stats.peak_minute_rps) == (6, 0.05, 4 / 60)
    assert stats.peak_to_mean == pytest.approx(4 / 3)
    # Counts per minute 4 and 2: variance 1, mean 3.
    assert stats.dispersion[60] == pytest.approx(1 / 3)
    per_second = np.bincount([0, 0, 1, 59, 61, 119], minlength=120)
    assert stats.dispersion[1] == pytest.approx(per_second.var() / per_second.mean())
    gaps = np.diff(at_s)
    assert stats.gap_cv == pytest.approx(gaps.std() / gaps.mean())
    assert (stats.isl.mean, stats.isl.p50, stats.isl.max) == (350, 350, 600)
    assert (stats.isl.below_128, stats.isl.below_512) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
    assert (stats.input_tps, stats.output_tps) == (2100 / 120, 21 / 120)
    assert stats.repeated_blocks is None


def test_arrivals_in_a_cut_last_window_do_not_count_as_a_thin_one() -> None:
    planned = [Planned(n, n / 10, 1, 1) for n in range(1005)]
    stats = stats_of(planned, 100.5)
    assert stats.dispersion[10] == pytest.approx(0.0)
    assert stats.peak_minute_rps == 10.0


def test_figures_that_cannot_be_told_are_none() -> None:
    at_once = stats_of([Planned(0, 0.0, 5, 5), Planned(1, 0.0, 5, 5)])
    assert at_once.rate_rps is at_once.gap_cv is at_once.input_tps is at_once.peak_to_mean is None
    assert set(at_once.dispersion.values()) == {None}
    assert stats_of([Planned(0, 3.0, 5, 5)], 30.0).dispersion[60] is None
    with pytest.raises(LoadError, match="has no request"):
        stats_of([])


def test_years_of_empty_seconds_take_no_memory() -> None:
    stats = stats_of([Planned(0, 0.0, 1, 1), Planned(1, 3e8, 1, 1)], 3.1e8)
    assert stats.dispersion[1] == pytest.approx(1.0, abs=1e-6)


def test_repeated_blocks_are_those_that_an_earlier_prompt_had() -> None:
    blocks = [(1, 2), (1, 2, 3), (4,), ()]
    assert repeated_blocks([Planned(n, 0.0, 9, 9, blocks=ids) for n, ids in enumerate(blocks)]) == pytest.approx(2 / 6)


def test_describe_prints_the_figures_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{n / 2},{1000 + n},{n % 7}\n" for n in range(400))
    path.write_text("at_s,isl_tokens,osl_tokens\n" + rows)
    assert main([str(path)]) == 0
    shown = capsys.readouterr().out
    for part in ("342 │ in 199 s", "1.72 │ requests/s", "tokens, at most 1,398", "left out: no output tokens", " 58 │"):
        assert part in shown, part


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_describe_draws_a_picture(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"picture.{kind}"
    assert main(["mooncake-like", "--duration-s", "90", "--plot", str(out)]) == 0
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG" if kind == "png" else b"<?xml") and len(content) > 20_000
    assert "repeated prompt blocks" in capsys.readouterr().out
    if kind == "svg":
        assert b"mooncake-like" in content


@pytest.mark.parametrize("planned", [[(0.0, 1, 1)], [(0.0, 1, 1), (0.0, 9, 2)], [(5.0, 3, 3), (1e6, 4, 10_000_000)]])
def test_odd_loads_can_be_drawn(tmp_path: Path, planned: list[tuple[float, int, int]]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,isl_tokens,osl_tokens\n" + "".join(f"{at_s},{isl},{osl}\n" for at_s, isl, osl in planned))
    assert main([str(path), "--plot", str(tmp_path / "picture.png")]) == 0


def test_describe_says_what_is_wrong_and_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert "nothing: neither a file nor one of" in capsys.readouterr().err
    for out, reason in ((tmp_path / "x.gif", "a .png or a .svg"), (tmp_path / "no" / "x.png", "cannot be written")):
        assert main(["burstgpt-like", "--plot", str(out)]) == 2
        assert reason in capsys.readouterr().err
