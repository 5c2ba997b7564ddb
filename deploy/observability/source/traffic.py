"""Traffic and SLO: what comes, what of it is answered within its targets, and how long it takes."""

from panel import ATTAINMENT, GOOD, REFUSED, Dashboard, Panel, Query, Row, quantile

NOW = (
    Panel("Attainment", "Share of requests that ended within both targets. Failed and refused ones are misses; "
          "those whose client has gone are left out.", "percentunit", (Query(ATTAINMENT),), "stat", width=4),
    Panel("Goodput", "Requests per second that met both of their targets.", "reqps", (Query(GOOD),), "stat", width=4),
    Panel("Arrivals", "Requests per second that were taken into the queue.", "reqps",
          (Query("sum(rate(dopd_arrivals_total[$__rate_interval]))"),), "stat", width=4),
    Panel("TTFT p99", "99 of 100 requests had their first token within this.", "s",
          (Query(quantile(0.99, "dopd_ttft_seconds")),), "stat", width=4),
    Panel("TPOT p99", "99 of 100 completed requests took at most this long per token after the first.", "s",
          (Query(quantile(0.99, "dopd_tpot_seconds")),), "stat", width=4),
    Panel("In hand", "Requests that wait or run, of all gateways.", "short",
          (Query("sum(dopd_waiting_requests) + sum(dopd_running_requests)"),), "stat", width=4),
)  # fmt: skip

REQUESTS = (
    Panel("Requests", "What came, what ended within its targets, and what failed or found the queue full.", "reqps", (
        Query("sum(rate(dopd_arrivals_total[$__rate_interval]))", "arrived"),
        Query(GOOD, "within both targets"),
        Query('sum(rate(dopd_requests_total{outcome="failed"}[$__rate_interval]))', "failed"),
        Query(REFUSED, "queue full"),
    ), axis="requests/s", least=0),
    Panel("Attainment", "Share of requests that ended within both targets; the objective is 99 %.", "percentunit",
          (Query(ATTAINMENT, "attainment"), Query("vector(0.99)", "objective")), least=0, most=1),
    Panel("Targets missed", "Completed requests that missed a target: TTFT points at prefill, TPOT at decode. "
          "One that missed both counts in both.", "reqps",
          (Query("sum by (target) (rate(dopd_slo_missed_total[$__rate_interval]))", "{{target}}"),),
          axis="requests/s", least=0),
    Panel("How requests end", "length and stop are complete; cancelled: the client has gone.", "reqps",
          (Query("sum by (outcome) (rate(dopd_requests_total[$__rate_interval]))", "{{outcome}}"),),
          axis="requests/s", stack=True, least=0),
    Panel("In the gateways", "Waiting requests are not placed yet, running ones are on workers.", "short", (
        Query("sum(dopd_waiting_requests)", "waiting"), Query("sum(dopd_running_requests)", "running"),
    ), axis="requests", stack=True, least=0),
    Panel("Prompt tokens that wait", "Of requests in the queue: what prefill workers have before them.", "short",
          (Query("sum(dopd_waiting_prefill_tokens)", "waiting"),), axis="tokens", least=0),
)  # fmt: skip

LATENCY = (
    Panel("TTFT", "Arrival at the gateway to the first token there, by quantile, with the default target.", "s", (
        *(Query(quantile(level, "dopd_ttft_seconds"), f"p{100 * level:.0f}") for level in (0.5, 0.9, 0.99)),
        Query('max(dopd_slo_seconds{target="ttft"})', "target"),
    ), least=0),
    Panel("TPOT", "Time per token after the first, of completed requests, with the default target.", "s", (
        *(Query(quantile(level, "dopd_tpot_seconds"), f"p{100 * level:.0f}") for level in (0.5, 0.9, 0.99)),
        Query('max(dopd_slo_seconds{target="tpot"})', "target"),
    ), least=0),
    Panel("TTFT, all of it", "Requests per bucket of TTFT: two humps are two kinds of requests.", "s",
          (Query("sum by (le) (increase(dopd_ttft_seconds_bucket[$__rate_interval]))"),), "heatmap"),
    Panel("TPOT, all of it", "Requests per bucket of TPOT.", "s",
          (Query("sum by (le) (increase(dopd_tpot_seconds_bucket[$__rate_interval]))"),), "heatmap"),
    Panel("Whole requests", "Arrival to end, however it ended.", "s", tuple(
        Query(quantile(level, "dopd_request_duration_seconds"), f"p{100 * level:.0f}") for level in (0.5, 0.99)
    ), least=0),
    Panel("Tokens", "Prompt tokens as they arrive, output tokens as they come in from workers.", "short",
          (Query("sum by (kind) (rate(dopd_tokens_total[$__rate_interval]))", "{{kind}}"),), axis="tokens/s", least=0),
)  # fmt: skip

ERRORS = (
    Panel("Failed requests", "After they were queued, by the error's code.", "reqps",
          (Query("sum by (code) (rate(dopd_request_failures_total[$__rate_interval]))", "{{code}}"),),
          axis="requests/s", least=0),
    Panel("Error answers", "Errors instead of an answer, or in the middle of one; also what clients did wrong.",
          "reqps",
          (Query("sum by (api, code) (rate(dopd_error_answers_total[$__rate_interval]))", "{{api}} {{code}}"),),
          axis="answers/s", least=0),
    Panel("Placements", "Of requests on workers. Lost ones are made anew elsewhere.", "ops", (
        Query("sum(rate(dopd_placements_total[$__rate_interval]))", "placed"),
        Query("sum(rate(dopd_attempts_lost_total[$__rate_interval]))", "lost"),
    ), axis="placements/s", least=0),
    Panel("Connections", "To the public port, and those that a limit has ended.", "short", (
        Query("sum(dopd_http_connections)", "open"),
        Query("sum(increase(dopd_http_refused_total[$__rate_interval]))", "ended by a limit"),
    ), axis="connections", least=0),
)  # fmt: skip

DASHBOARD = Dashboard(
    "dopd-traffic", "DOPD: traffic and SLO",
    "What comes to all gateways, and whether it is answered within its targets.",
    (Row("Now", NOW), Row("Requests", REQUESTS), Row("Latency", LATENCY), Row("What goes wrong", ERRORS)),
)  # fmt: skip
