"""The live page's document: what `Past` has, as JSON. Pure.

`snapshot` makes the whole of it, `difference` what has changed since, as a JSON merge patch (RFC 7386). Times are
seconds since the epoch on the gateway's clock, durations seconds, rates per second. A key that is missing means that
nothing is known; there is no null in it. Names of rows that are times or numbers are text, as JSON has it.

| key | what it is |
|---|---|
| `at_s` | when it was made |
| `gateway` | `id`, `incarnation`, `model`, `since_s` (this life began, and what the page knows), `connected` (to the broker), `gateways` (that are heard, this one too) |
| `slo` | `ttft_s`, `tpot_s`: the targets of a request that names none |
| `keep_s`, `bin_s`, `window_s` | how far back it goes; the width of a bin; how long gateways count arrivals at a time |
| `queue` | of all gateways: `waiting` and `running` requests, `waiting_tokens` to be computed |
| `rates` | of all gateways, in their last windows: `requests_per_s`, `tokens_per_s` |
| `workers` | by id: `role`, `phase` (also `overlap`, `lost`, `stopped`: `lanes.py`), `heard_s`, and unless it is gone `running`, `waiting`, `queued_tokens`, `context_tokens`, `kv_used_tokens`, `kv_total_tokens`, `kv_misses`, `credit`, `engine`, `steps_per_s` |
| `lanes` | by worker: stretches `[at_s, role, phase, why]`, each until the next; `why` is "", `flip`, `restart` or `back` |
| `left_out` | workers beyond the most that have a lane |
| `bins` | by begin: this gateway's requests that ended in a bin, `ended`, `failed`, `met` (both targets), `waiting` (longest queue), `ttft_p50_s`, `ttft_p90_s`, `tpot_p50_s`, `tpot_p90_s` |
| `minute` | the same of the last minute, and `since_s`: when that began |
| `arrivals` | by end of a window: requests per second, all gateways |
| `forecasts` | by begin: `horizon_s`, `mean`, and with quantiles `low`, `high`, `share`; the shortest horizon's |
| `ahead` | by horizon: the same and `start_s`; the newest of each |
| `decisions` | of the planner, the newest first: `id`, `at_s`, `split`, `why`, `reason`, `said`, `words`, `changes`, `dry_run`, and where several alike follow on one another `times`, since `since_s`; missing when no planner answers |
| `met`, `missed` | by number: the last requests that met their targets and that did not: `id`, `at_s`, `total_s`, `isl`, `osl`, `attempts`, `end`, `met`, `phases` (`[name, start_s, end_s, process]` since the arrival), `code`, `ttft_s`, `tpot_s`, `trace` |
"""  # noqa: E501 - a table

from collections.abc import Mapping
from typing import Any

from dopd_gateway.live import KEEP_S
from dopd_gateway.live.bins import BIN_S
from dopd_gateway.live.lanes import Lane
from dopd_gateway.live.past import Past
from dopd_gateway.live.recent import Ring

NOTHING = object()

Json = dict[str, Any]


def snapshot(past: Past, now_s: float) -> Json:
    """The whole document."""
    about, bins, traffic = past.about, past.bins, past.traffic
    made: Json = {
        "at_s": round(now_s, 3),
        "gateway": {
            "id": about.gateway_id, "incarnation": about.incarnation, "model": about.model,
            "since_s": round(about.since_s, 3), "connected": past.sight.connected, "gateways": len(past.sight.gateways),
        },
        "slo": {"ttft_s": about.slo.ttft_s, "tpot_s": about.slo.tpot_s},
        "keep_s": KEEP_S, "bin_s": BIN_S, "window_s": traffic.window_s,
        "queue": _queue(past),
        "workers": {worker_id: _worker(lane) for worker_id, lane in past.lanes.by_worker.items()},
        "lanes": {
            worker_id: [[round(one.at_s, 3), *one[1:]] for one in lane.stretches]
            for worker_id, lane in past.lanes.by_worker.items()
        },
        "left_out": past.lanes.left_out,
        "bins": _by_time({**bins.rows, bins.now.start_s: bins.now.row()}),
        "minute": bins.last_minute(now_s),
        "arrivals": _by_time(traffic.arrivals()),
        "forecasts": _by_time(traffic.forecasts()),
        "ahead": _by_time(traffic.ahead(now_s)),
        "met": _ring(past.recent.met),
        "missed": _ring(past.recent.missed),
    }  # fmt: skip
    rates = past.sight.rates(now_s)
    if rates is not None:
        made["rates"] = {"requests_per_s": round(rates.requests_per_s, 3), "tokens_per_s": round(rates.tokens_per_s, 1)}
    if past.decisions is not None:
        made["decisions"] = past.decisions
    return made


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """The merge patch that makes `after` of `before`: null takes a key away, arrays come whole. Neither has nulls."""
    patch: Json = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key, NOTHING)
        if isinstance(value, dict) and isinstance(known, dict):
            if changed := difference(known, value):
                patch[key] = changed
        elif known != value:
            patch[key] = value
    return patch


def _queue(past: Past) -> Json:
    states = [state for state, _ in past.sight.gateways.values()]
    return {
        "waiting": sum(state.waiting for state in states),
        "waiting_tokens": sum(state.waiting_prefill_tokens for state in states),
        "running": sum(state.running for state in states),
    }


def _worker(lane: Lane) -> Json:
    state, last = lane.state, lane.stretches[-1]
    if lane.gone:
        return {"role": last.role, "phase": last.phase, "heard_s": round(lane.heard_s, 3), "engine": state.engine}
    row: Json = {
        "role": last.role, "phase": last.phase, "running": state.running, "waiting": state.waiting,
        "queued_tokens": state.queued_prefill_tokens, "context_tokens": state.context_tokens,
        "kv_used_tokens": state.kv_used_tokens, "kv_total_tokens": state.kv_total_tokens,
        "kv_misses": state.kv_misses, "engine": state.engine,
        "credit": sum(max(0, grant.limit - grant.received) for grant in state.grants),
    }  # fmt: skip
    if lane.steps_per_s is not None:
        row["steps_per_s"] = round(lane.steps_per_s, 1)
    return row


def _ring(ring: Ring) -> Json:
    return {str(number): row for number, row in ring.rows}


def _by_time(rows: Mapping[float, Any]) -> Json:
    return {f"{at_s:.15g}": row for at_s, row in rows.items()}
