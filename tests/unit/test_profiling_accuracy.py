"""Errors of an emulation against its engine, limits and verdict, by hand."""

from collections.abc import Sequence

import pytest

from dopd.errors import LoadError
from dopd_loadgen.model import Record, Run
from dopd_loadgen.profiling.accuracy import as_json, compared, doubts, figures, said


def run(ttfts_s: Sequence[float], tpot_s: float = 0.01, tokens: int = 3) -> Run:
    records = [
        Record(n, 10, tokens, float(n), sent_s=float(n), times_s=[n + ttft + i * tpot_s for i in range(tokens)],
               counts=[1] * tokens, failure="")
        for n, ttft in enumerate(ttfts_s)
    ]  # fmt: skip
    return Run("x", "virtual", "x", "x", 0, 0.0, 9.0, 9.0, 1.0, 1.0, records)


def test_figures_are_the_mean_and_percentiles_of_the_requests() -> None:
    found = figures(run([0.1, 0.2, 0.3]), "ttft")
    assert found == pytest.approx({"mean": 0.2, "p50": 0.2, "p90": 0.28, "p99": 0.298})
    assert figures(run([0.1], 0.02), "tpot")["mean"] == pytest.approx(0.02)


def test_equal_runs_have_no_error_and_pass() -> None:
    rows = compared([run([0.1, 0.2])] * 2, [run([0.1, 0.2])])
    assert all(row.error == pytest.approx(0) and row.passed for row in rows)
    assert [(row.latency, row.limit) for row in rows if row.limit] == [("ttft", 0.15), ("tpot", 0.05)]


@pytest.mark.parametrize(("tpot_s", "passed"), [(0.0104, True), (0.0106, False), (0.0094, False)])
def test_a_mean_beyond_its_limit_is_missed_in_both_directions(tpot_s: float, passed: bool) -> None:
    rows = compared([run([0.1], 0.01)] * 3, [run([0.1], tpot_s)])
    assert all(row.passed for row in rows) == passed
    assert as_json(rows)["passed"] is passed
    assert any("MISSED" in line for line in said(rows)) != passed


def test_the_engines_own_spread_widens_the_limit() -> None:
    engine = [run([0.1], tpot_s) for tpot_s in (0.008, 0.010, 0.012)]
    row = next(row for row in compared(engine, [run([0.1], 0.012)]) if (row.latency, row.figure) == ("tpot", "mean"))
    assert row.spread == pytest.approx(0.2)
    assert row.limit == pytest.approx(0.3)
    assert row.passed


def test_a_limit_that_noise_has_made_wide_is_doubted() -> None:
    noisy = [run([0.1], tpot_s) for tpot_s in (0.008, 0.010, 0.012)]
    assert ["TPOT of the engine itself varies by 20 %" in doubt for doubt in doubts(compared(noisy, noisy))] == [True]
    assert doubts(compared([run([0.1])] * 3, [run([0.1], 0.02)])) == []


def test_answers_of_one_token_give_nothing_to_compare() -> None:
    with pytest.raises(LoadError, match="two tokens"):
        compared([run([0.1], tokens=1)], [run([0.1], tokens=1)])
