"""The back-test: what is seen when, what is scored, against figures worked out by hand; and the command about it."""

import json
import math
from pathlib import Path

import pytest
from numpy.random import PCG64, Generator

from dopd.errors import LoadError
from dopd.perf.profile import named
from dopd_loadgen.forecasting import source, summary
from dopd_loadgen.forecasting.backtest import ONLINE, Result, backtest
from dopd_loadgen.forecasting.command import main
from dopd_loadgen.forecasting.source import Case, Pace, Truth, actual, of_requests, of_table
from dopd_loadgen.model import Planned

PROFILE = named("h200-llama-3.1-8b-fp8-tp1")


def requests(rate: float, span_s: float, isl: int = 500, osl: int = 50) -> list[Planned]:
    return [Planned(number, number / rate, isl, osl) for number in range(int(rate * span_s) + 1)]


def case(planned: list[Planned], pace: Pace | None = None) -> Case:
    return of_requests("made", planned, 10.0, (PROFILE, PROFILE), 128, pace or Pace())


def rates(values: list[float]) -> Case:
    return Case("made", 60.0, len(values), {"rate": Truth(values)}, source._Listed(values))


def found(results: list[Result], series: str, horizon_s: float) -> Result:
    return next(one for one in results if one.series == series and one.horizon_s == horizon_s)


def test_a_steady_load_is_forecast_without_error() -> None:
    results = backtest(case(requests(2.0, 1200)), (1, 6))
    for one in results:
        if one.series != "short_share":
            assert one.scores[ONLINE].wape == pytest.approx(0, abs=0.06)
    rate = found(results, "requests_per_s", 60.0)
    assert rate.scores[ONLINE].wape == pytest.approx(0, abs=1e-9) and rate.scores[ONLINE].n == 55


def test_the_error_is_the_sum_of_errors_over_the_sum_of_what_came() -> None:
    """Last value on 1 2 1 4 1 6: from the middle on the bins 4, 1, 6 come, the forecasts are 1, 4, 1."""
    one = found(backtest(rates([1.0, 2.0, 1.0, 4.0, 1.0, 6.0]), (1,)), "rate", 60.0)
    score = one.scores["last"]
    assert (score.n, score.wape) == (3, pytest.approx((3 + 3 + 5) / 11))
    # in the first half, 2 and 1 came after 1 and 2: a mean absolute error of 1
    assert score.mase == pytest.approx((3 + 3 + 5) / 3 / 1.0)


def test_the_halves_are_apart_and_the_first_does_not_look_into_the_second() -> None:
    early, late = [5.0] * 20, [50.0] * 20
    first = found(backtest(rates(early + late), (2,), half="first"), "rate", 120.0)
    second = found(backtest(rates(early + late), (2,)), "rate", 120.0)
    assert first.scores["last"].wape == 0.0 and first.scores["last"].n == 18
    assert second.moments[0].first_bin == 20 and second.scores["last"].n == 19


def test_no_forecast_knows_what_comes() -> None:
    """Another future, the same forecasts until then."""
    rng = Generator(PCG64(5))
    past = [float(value) for value in rng.poisson(20, 30)]
    one, other = (
        found(backtest(rates([*past, *future]), (1,), half="all"), "rate", 60.0).moments
        for future in ([1.0] * 10, [99.0] * 10)
    )
    assert [m.point for m in one[:30]] == [m.point for m in other[:30]]
    assert [m.quantiles for m in one[:30]] == [m.quantiles for m in other[:30]]


def test_the_floor_is_that_of_poisson_arrivals() -> None:
    """sqrt(2 / (pi N)) of N expected requests, and what a forecaster that knows the rate comes to."""
    rng = Generator(PCG64(9))
    times = sorted(float(value) for value in rng.uniform(0, 5_000, 30_000))
    one = found(backtest(case([Planned(n, at, 100, 5) for n, at in enumerate(times)]), (1,)), "requests_per_s", 10.0)
    assert one.floor == pytest.approx(math.sqrt(2 / (math.pi * 60)), rel=0.03)
    assert one.floor * 0.9 < one.scores["mean-50"].wape < one.floor * 1.15


def test_output_lengths_are_seen_as_they_are_made() -> None:
    """At 0.1 s a token the 200 tokens of a request are made in 20 s; all are counted in the end, and each once."""
    late = case([Planned(0, 0.0, 10, 200), Planned(1, 95.0, 10, 1)], Pace(ttft_s=1.0, tpot_s=0.1)).feed
    assert isinstance(late, source._Replayed)
    assert [counted[0] for counted in late._made[:4]] == [0, 0, 1, 0]
    assert [counted[1] for counted in late._made[:4]] == [90, 100, 10, 0]
    assert sum(counted[2] for counted in late._made) == sum(10 + place for place in range(200))


def test_true_lengths_belong_to_the_bin_in_which_a_request_came() -> None:
    made = case([Planned(0, 5.0, 100, 10), Planned(1, 15.0, 100, 30), Planned(2, 45.0, 100, 30)], Pace(tpot_s=1.0))
    assert actual(made.truth["osl_tokens_mean"], "osl_tokens_mean", 0, 2)[:2] == (20.0, 2.0)
    assert math.isnan(actual(made.truth["osl_tokens_mean"], "osl_tokens_mean", 2, 1)[0])


def test_a_source_of_less_than_four_bins_is_refused() -> None:
    with pytest.raises(LoadError, match="too short"):
        case(requests(1.0, 35))


def test_minutes_that_are_absent_had_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens.csv"
    path.write_text("minute,tokens_per_s\n0,5\n2,7\n4,1\n")
    assert source.is_table(path)
    assert of_table(path, None).truth["tokens_per_s"].total == [5.0, 0.0, 7.0, 0.0, 1.0]


def test_rates_of_zero_in_a_servegen_table_are_holes(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    rows = [f"m,{600 * at},{rate}" for at, rate in enumerate([3, 0, 4, 5])] + ["other,0,1"]
    path.write_text("\n".join(["model,start_s,rate", *rows]))
    values = of_table(path, "m").truth["requests_per_s"].total
    assert [*values[:1], *values[2:]] == [3.0, 4.0, 5.0] and math.isnan(values[1])
    with pytest.raises(LoadError, match="choose one"):
        of_table(path, None)


def test_a_hole_is_not_scored() -> None:
    values = [4.0] * 10 + [math.nan] * 2 + [4.0] * 8
    one = found(backtest(rates(values), (1,)), "rate", 60.0)
    assert one.scores["last"].n == 8 and one.scores["last"].wape == 0.0


def test_arima_is_fitted_every_so_many_bins() -> None:
    pytest.importorskip("statsmodels")
    rng = Generator(PCG64(3))
    values = [float(value) for value in rng.poisson(30, 40)]
    one = found(backtest(rates(values), (1,), arima_stride=20), "rate", 60.0)
    assert one.scores["arima"].n == 20 and 0 < one.scores["arima"].wape < 1


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = Generator(PCG64(1))
    times = sorted(float(value) for value in rng.uniform(0, 900, 1800))
    path = tmp_path / "trace.csv"
    path.write_text(
        "at_s,isl_tokens,osl_tokens\n" + "".join(f"{at},{300 + n % 50},{20}\n" for n, at in enumerate(times))
    )
    return path


def test_the_command_writes_figures_a_page_and_pictures(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--json", str(tmp_path / "f.json"), "--html", str(tmp_path / "f.html"), "--plots", str(tmp_path / "plots")]
    assert main([str(trace), "--horizons", "10,60", "--arima-stride", "0", *out]) == 0
    said = capsys.readouterr().out
    assert "second half" in said and "best fixed model in hindsight" in said
    data = json.loads((tmp_path / "f.json").read_text())
    rows = data["cases"][0]["results"]
    assert {(row["series"], row["horizon_s"]) for row in rows} >= {("prefill_work", 60.0), ("decode_work", 10.0)}
    assert data["settings"]["half"] == "second" and rows[0]["models"]["online"]["n"] > 0
    assert (tmp_path / "f.html").read_text().count("<svg") == 2
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "forecast-10s.png", "forecast-10s.svg", "forecast-60s.png", "forecast-60s.svg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--horizons", "15"], "no multiple"),
        (["--horizons", "600"], "more than a quarter"),
        (["--models", "best"], "no model 'best'"),
        (["--models", "arima", "--arima-stride", "0"], "needs --arima-stride"),
        (["--bin-s", "-1"], "may not be negative"),
        (["--profile", "h9000"], "unknown profile"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    trace: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trace), *flags]) == 2
    assert reason in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


def test_the_verdict_says_where_the_choice_was_worst() -> None:
    results = backtest(rates([1.0, 9.0] * 20), (1,))
    assert "(rate at 60 s)" in summary.verdict(results)
    assert summary.verdict(backtest(rates([0.0] * 20), (1,))) == "nothing came that could be scored"
