"""Workers and roles over time: which worker does what, and how busy it is with it."""

from panel import Dashboard, Panel, Query, Row, named, states

ROLES = (("prefill", "blue"), ("decode", "green"), ("mixed", "purple"))
PHASES = (
    ("starting", "light-blue"), ("serving", "green"), ("draining", "yellow"), ("stalled", "orange"), ("failed", "red"),
    ("stopping", "gray"),
)  # fmt: skip
STEP = "rate(dopd_engine_step_seconds_{}[$__rate_interval])"


def each(title: str, says: str, unit: str, expr: str, axis: str = "", most: float | None = None) -> Panel:
    """One line per worker."""
    return Panel(title, says, unit, (Query(named(expr), "{{service}}"),), axis=axis, least=0, most=most)


WHO = (
    Panel("Role of each worker", "As its last heartbeat says.", "none",
          (Query(states("dopd_worker_role", "role", ROLES), "{{service}}"),), "state-timeline", width=24,
          names=ROLES),
    Panel("Phase of each worker", "draining: away until the work of its old role is gone; stalled: no step for long.",
          "none", (Query(states("dopd_worker_phase", "phase", PHASES), "{{service}}"),), "state-timeline",
          width=24, names=PHASES),
    Panel("Workers by role", "As the planner hears them.", "short",
          (Query("max by (role) (dopd_planner_workers)", "{{role}}"),), axis="workers", stack=True, least=0),
    Panel("Role changes", "Begun by workers, per interval.", "short",
          (Query(named("increase(dopd_worker_role_changes_total[$__rate_interval])"), "{{service}}"),),
          axis="changes", bars=True, stack=True, least=0),
)  # fmt: skip

BUSY = (
    each("Busy", "Share of the time with work in hand.", "percentunit", STEP.format("sum"), most=1),
    each("Mean step", "Time with work in hand over steps of the engine.", "s",
         f"{STEP.format('sum')} / ({STEP.format('count')} > 0)"),
    each("Output", "Tokens made.", "short", "rate(dopd_worker_output_tokens_total[$__rate_interval])", "tokens/s"),
    each("Input computed", "Input whose KV was neither in the engine's own cache nor in the store.", "short",
         'rate(dopd_worker_input_tokens_total{kv="computed"}[$__rate_interval])', "tokens/s"),
    each("In hand", "Segments of requests on the worker, running or not.", "short", "dopd_worker_held_requests",
         "segments"),
    each("Waiting in the engine", "Not in the engine's steps yet; the gateway's queue is where requests should wait.",
         "short", "dopd_worker_waiting_requests", "requests"),
    each("Decoding", "Requests that decode.", "short", "dopd_worker_decoding_requests", "requests"),
    each("Prompt tokens before it", "Input not computed yet.", "short", "dopd_worker_queued_prefill_tokens", "tokens"),
    each("Live context", "Of decoding requests; long contexts make steps longer.", "short",
         "dopd_worker_context_tokens", "tokens"),
    each("Requests in the engine", "Requests in the engine's steps.", "short", "dopd_worker_running_requests",
         "requests"),
)  # fmt: skip

FLOW = (
    Panel("Credit", "Requests that gateways may still place, by role of the workers. At 0 the queue grows.", "short",
          (Query("sum by (role) (dopd_credit_requests)", "{{role}}"),), axis="requests", least=0),
    Panel("Workers that gateways hear", "By role and phase, as the gateway that hears the fewest does.", "short",
          (Query("min by (role, phase) (dopd_workers)", "{{role}} {{phase}}"),), axis="workers", least=0),
    Panel("Segments", "How they end: handed_over to the decode worker, open: left to the gateway, migrated: given back "
          "at a role change.", "ops",
          (Query("sum by (end) (rate(dopd_worker_segments_total[$__rate_interval]))", "{{end}}"),), axis="segments/s",
          least=0),
    Panel("Refusals", "Work that a worker did not take, by reason. Some are normal around a role change.", "ops",
          (Query("sum by (reason) (rate(dopd_worker_refusals_total[$__rate_interval]))", "{{reason}}"),),
          axis="refusals/s", least=0),
)  # fmt: skip

DASHBOARD = Dashboard(
    "dopd-workers", "DOPD: workers and roles", "Which worker does what, and how busy it is with it.",
    (Row("Who does what", WHO), Row("How busy", BUSY), Row("Between gateways and workers", FLOW)),
)  # fmt: skip
