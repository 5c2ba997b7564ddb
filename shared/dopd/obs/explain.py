"""A decision in words, and many as a table. Pure: `DecisionRecord`s in, text out."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from dopd_proto.control import Change, DecisionRecord

HEADINGS = ("decision", "at", "why", "reason", "split", "binding", "changes")
REASONS = {
    "grow_prefill": "Too few prefill workers for what is expected; a lack is mended at once.",
    "grow_decode": "Too few decode workers for what is expected; a lack is mended at once.",
    "emergency_prefill": "Prompts are waiting, more than prefill workers can do in time: no waiting for forecasts.",
    "emergency_decode": "Requests are waiting for a place to decode: no waiting for forecasts.",
    "rebalance_prefill": "Nothing is lacking, but forecasts agree that prefill has little headroom.",
    "rebalance_decode": "Nothing is lacking, but forecasts agree that decode has little headroom.",
    "best_split": "The present split is the best one.",
    "headroom_fine": "Another split has more headroom, but the present one has enough.",
    "gain_below_cost": "Another split is better, but by less than the change would cost.",
    "awaiting_confirmation": "Another split is better; the next forecast must agree.",
    "cooldown": "Another split is better, but would undo a change made a moment ago.",
    "settling": "The last change has not taken effect yet.",
    "no_demand": "Nothing is expected and nothing waits.",
    "no_choice": "No other split can be had with these workers.",
    "too_few_workers": "There are too few workers that serve.",
    "no_forecast": "There is no forecast; only queues are looked at, and they are short.",
    "forecast_stale": "The last forecast is too old; only queues are looked at, and they are short.",
    "forecast_unknown": "The forecast does not know lengths yet; only queues are looked at, and they are short.",
    "listening": "The planner has just begun to listen; silence says nothing yet, so all roles are held.",
    "policy_failed": "The policy failed; all roles are held, the planner's log has the error.",
    "forecast_off": "Forecasts are switched off; only queues are looked at, and they are short.",
    "first_interval": "The first interval is not over; what it shows will decide.",
    "sized": "The sizes of both pools followed from the means of the last interval.",
    "changing": "The changes of the last decision are made one after the other; nothing else is decided meanwhile.",
    "thresholds": "Queues and memory of the last interval were compared with their thresholds.",
    "idle": "No request for long: one worker of each kind is all that is needed.",
    "no_load": "The forecast has no prompts or no answers: one worker of each kind is all that is needed.",
    "person": "A person wanted it.",
    "pin": "A person had pinned another role.",
    "repair": "A pool had no worker.",
}
BINDINGS = {
    "prefill": "the time of prefill workers",
    "decode_step": "the time of decode steps",
    "kv_memory": "the KV memory of decode workers",
    "places": "the requests that a decode worker takes at a time",
    "minimum": "the one worker that each pool keeps",
}


Tell = Callable[[float], str]
"""How a time is told."""


def utc(at_s: float) -> str:
    """Seconds since the epoch."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%m-%d %H:%M:%S UTC")


def table(records: Sequence[DecisionRecord], at: Tell = utc) -> str:
    """One line per decision under the headings."""
    lines = [HEADINGS, *(_cells(record, at) for record in records)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(record: DecisionRecord, at: Tell) -> tuple[str, ...]:
    moved = [c for c in record.changes if not c.outcome.startswith("refused")]
    changes = ", ".join(f"{c.worker_id}>{c.role} {c.outcome or 'open'}" for c in moved) or "-"
    note = " (dry run)" if record.dry_run else ""
    binding = record.binding or "-"
    return record.decision_id, at(record.at_s), record.why, record.reason, split(record), binding, changes + note


def split(record: DecisionRecord) -> str:
    """Such as 4P4D > 5P3D."""
    return f"{record.prefill}P{record.decode}D" + _onward(record)


def _onward(record: DecisionRecord) -> str:
    """Where the workers go, by their changes."""
    more = sum((c.role == "prefill") - (c.before == "prefill") for c in record.changes if _counts(c))
    return f" > {record.prefill + more}P{record.decode - more}D" if more else ""


def _counts(change: Change) -> bool:
    return not change.outcome.startswith("refused")


def words(record: DecisionRecord, at: Tell = utc) -> str:
    """All that is known of one decision."""
    parts = [
        f"{record.decision_id}, {at(record.at_s)}, by {record.planner_id} in term {record.term}"
        + (" (dry run: nothing was commanded)" if record.dry_run else ""),
        f"{record.prefill} prefill and {record.decode} decode workers{_onward(record)}: {reason(record)}",
    ]
    if record.needs:
        parts.append(f"It lacked {record.needs}.")
    if record.binding:
        parts.append(f"What limits the split: {BINDINGS.get(record.binding, record.binding)}.")
    if record.inputs:
        parts += ["", "From these numbers:", *(f"  {name:<20} {value:.6g}" for name, value in record.inputs.items())]
    if record.forecast is not None:
        parts += ["", *_forecast(record, at)]
    if record.alternatives:
        parts += ["", "Splits considered:", *_alternatives(record)]
    if record.changes:
        parts += ["", "Role changes:", *(f"  {_change(change)}" for change in record.changes)]
    return "\n".join(parts)


def reason(record: DecisionRecord) -> str:
    """The policy's code as a sentence."""
    return REASONS.get(record.reason, f"{record.why}: {record.reason}")


def _forecast(record: DecisionRecord, at: Tell) -> list[str]:
    forecast = record.forecast
    assert forecast is not None
    levels = " ".join(f"{level:>9.0%}" for level in forecast.quantile_levels)
    lines = [f"Forecast of {forecast.horizon_s:g} s from {at(forecast.start_s)}:"]
    lines.append(f"  {'series':<20} {'mean':>9} {levels}  model, recent error")
    for one in forecast.series:
        values = " ".join(f"{value:>9.4g}" for value in one.quantiles)
        error = "-" if one.error is None else f"{one.error:.0%}"
        note = f" ({one.reason})" if one.reason else ""
        lines.append(f"  {one.name:<20} {one.point:>9.4g} {values}  {one.model}, {error}{note}")
    return lines


def _alternatives(record: DecisionRecord) -> list[str]:
    lines = []
    for place, one in enumerate(record.alternatives):
        marks = ["chosen"] * (place == 0) + ["present"] * ((one.prefill, one.decode) == (record.prefill, record.decode))
        lines.append(
            f"  {one.prefill}P{one.decode}D: {one.attainment:.1%} within the targets, headroom {one.headroom:.0%}, "
            f"limited by {one.binding}" + (f" ({', '.join(marks)})" if marks else "")
        )
    return lines


def _change(change: Change) -> str:
    said = f"{change.worker_id}: {change.before} to {change.role}, {change.outcome or 'not read back yet'}"
    if change.accepting_s is not None:
        said += f"; took new work after {change.accepting_s:.3f} s"
    if change.drained_s is not None:
        said += f", old work gone after {change.drained_s:.3f} s"
    return said
