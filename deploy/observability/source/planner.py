"""Planner and forecaster: what was expected and came, which split was wanted and what it should have brought."""

from panel import ATTAINMENT, Dashboard, Panel, Query, Row, quantile

CAME = "sum(rate(dopd_arrivals_total[${horizon}s]))"


def expected(metric: str, labels: str = "") -> str:
    """What was said one horizon ago, so that it stands where it was to come true."""
    return f'max({metric}{{horizon_s="$horizon"{labels}}} offset ${{horizon}}s)'


def level(at: float) -> str:
    """A quantile of it."""
    return expected("dopd_forecast_quantile_requests_per_second", f', level="{at:g}"')


FORECAST = (
    Panel("Forecast and what came", "Mean requests per second of the last horizon: what came, and what had been "
          "expected of it one horizon before, with the range in which 8 of 10 should lie.", "reqps", (
              Query(CAME, "came"), Query(expected("dopd_forecast_requests_per_second"), "expected"),
              Query(level(0.1), "0.1"), Query(level(0.9), "0.9"),
          ), axis="requests/s", width=24, least=0, band=("0.1", "0.9")),
    Panel("Forecast error", "Recent sum of absolute errors over the sum of what came, of requests per second. "
          "Above 1 no forecast at all would be as good.", "percentunit",
          (Query('max by (horizon_s) (dopd_forecast_error_ratio{series="requests_per_s"})', "{{horizon_s}} s"),),
          least=0),
    Panel("Expected work", "Workers that what is expected would keep busy: with prompts, and with answers, these "
          "without the fixed cost of a step.", "short",
          (Query('max by (role) (dopd_forecast_busy_workers{horizon_s="$horizon"})', "{{role}}"),), axis="workers",
          least=0),
    Panel("Age of the forecast", "Seconds since the last forecast began. The planner does without one that is too old.",
          "s", (Query("time() - max by (horizon_s) (dopd_forecast_timestamp_seconds)", "{{horizon_s}} s"),), least=0),
    Panel("Windows refused", "Counts of gateways that the forecaster did not take, by reason.", "short",
          (Query("sum by (reason) (increase(dopd_forecast_windows_refused_total[$__rate_interval]))", "{{reason}}"),),
          axis="windows", bars=True, stack=True, least=0),
)  # fmt: skip

SPLIT = (
    Panel("Split: there and wanted", "Workers of each role as the planner hears them, and as its last plan wants them.",
          "short", (Query("max by (role) (dopd_planner_workers)", "{{role}}"),
                    Query("max by (role) (dopd_planner_wanted_workers)", "{{role}} wanted")), axis="workers", least=0),
    Panel("Decisions", "Recorded ones by reason; most change nothing. `dopd explain ID` tells one in words.", "short",
          (Query("sum by (reason) (increase(dopd_planner_decisions_total[$__rate_interval]))", "{{reason}}"),),
          axis="decisions", bars=True, stack=True, least=0),
    Panel("Predicted attainment", "Of each split that was considered: share of requests expected within both targets. "
          "Beside it what came of the split there was.", "percentunit",
          (Query("max by (split) (dopd_planner_predicted_attainment_ratio)", "{{split}}"),
           Query(ATTAINMENT, "measured")),
          least=0, most=1),
    Panel("Predicted headroom", "Of each split that was considered: how much of its limit is left. Below 0 there is "
          "too little of something.", "percentunit",
          (Query("max by (split) (dopd_planner_predicted_headroom_ratio)", "{{split}}"),), most=1),
)  # fmt: skip

CHANGES = (
    Panel("Flips", "What came of role changes: accepting, then drained; or why not.", "short",
          (Query("sum by (outcome) (increase(dopd_role_changes_total[$__rate_interval]))", "{{outcome}}"),),
          axis="changes", bars=True, stack=True, least=0),
    Panel("How long a change takes", "From the command to the first work of the new role, and to the end of the last "
          "work of the old one.", "s", tuple(
              Query(quantile(at, f"dopd_role_change_{stage}_seconds"), f"{stage} p{100 * at:.0f}")
              for stage in ("accepting", "drained") for at in (0.5, 0.99)
          ), least=0),
    Panel("Leading planners", "One commands; at 0 roles are held.", "short",
          (Query("sum(dopd_planner_leading)", "leading"), Query("count(dopd_planner_leading)", "there")),
          axis="planners", least=0),
    Panel("Pinned workers", "Workers whose role a person has chosen; `dopd roles unpin` gives it back.", "short",
          (Query("max(dopd_planner_pinned_workers)", "pinned"),), axis="workers", least=0),
)  # fmt: skip

DASHBOARD = Dashboard(
    "dopd-planner", "DOPD: planner and forecast",
    "What was expected and what came, and which split the planner wanted and why.",
    (Row("Forecast", FORECAST), Row("Split", SPLIT), Row("Changes", CHANGES)),
    (("horizon", "label_values(dopd_forecast_requests_per_second, horizon_s)"),),
)  # fmt: skip
