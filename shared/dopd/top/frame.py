"""One frame of `dopd top`. Pure: a `Sight`, the time and the terminal's size in, a rich renderable out.

Columns leave in the order of their use when the terminal is narrow, workers below the last line are counted.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dopd.top.sight import Rates, Seen, Sight
from dopd_proto.control import Change, DecisionRecord

ROLES = {"prefill": "cyan", "decode": "green", "mixed": "magenta"}
PHASES = {"serving": "", "starting": "yellow", "draining": "yellow", "stopping": "yellow"}
BAR_CELLS = 10
LOW_LINES = 12
"""In fewer lines there is room for the workers only, not for decisions."""


class Column(NamedTuple):
    """A column of the workers' table. The one with the highest `leaves` leaves first, 0 never does."""

    heading: str
    cells: int
    leaves: int
    text: Callable[[Seen, float], Text]
    right: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("worker", 8, 0, lambda w, _: Text(w.state.worker_id, "bold"), right=False),
    Column("role", 7, 0, lambda w, _: Text(w.state.role, ROLES[w.state.role]), right=False),
    Column("phase", 8, 1, lambda w, _: _phase(w), right=False),
    Column("run", 4, 1, lambda w, _: Text(count(w.state.running))),
    Column("wait", 4, 1, lambda w, _: Text(count(w.state.waiting))),
    Column("queued", 6, 3, lambda w, _: Text(count(w.state.queued_prefill_tokens))),
    Column("context", 7, 5, lambda w, _: Text(count(w.state.context_tokens))),
    Column("kv", 4, 2, lambda w, _: Text(f"{_kv(w):.0%}", "red" if _kv(w) > 0.9 else "")),
    Column("", BAR_CELLS, 7, lambda w, _: Text(_bar(_kv(w)), "blue"), right=False),
    Column("steps/s", 7, 4, lambda w, _: Text("-" if w.steps_per_s is None else f"{w.steps_per_s:.1f}")),
    Column("credit", 6, 6, lambda w, _: Text(count(sum(max(0, g.limit - g.received) for g in w.state.grants)))),
    Column("misses", 6, 8, lambda w, _: Text(count(w.state.kv_misses), "red" if w.state.kv_misses else "")),
    Column("engine", 28, 9, lambda w, _: Text(w.state.engine or "-", "dim"), right=False),
)
GAP = 2


def frame(sight: Sight, now_s: float, size: tuple[int, int], title: str) -> RenderableType:
    """The whole terminal of `size` (columns, lines). `title` says which cluster."""
    width, height = size
    head = [_title(sight, title), *_traffic(sight, now_s), _queues(sight)]
    low = height < LOW_LINES
    tail, space = ([], []) if low else (_decisions(sight, now_s), [Text()])
    room = max(1, height - len(head) - len(tail) - 2 * len(space) - 1)
    lines = [_cut(line, width) for line in (*head, *space)]
    return Group(*lines, _table(sight, now_s, width, room), *space, *[_cut(line, width) for line in tail])


def count(number: int) -> str:
    """Short enough for a column: 950, 12.3k, 4.1M."""
    if number < 1000:
        return str(number)
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if number < 999.5 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number / 1e12:.3g}T"


def since(seconds: float) -> str:
    """How long ago, in one unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _title(sight: Sight, title: str) -> Text:
    split = {role: sum(seen.state.role == role for seen in sight.workers.values()) for role in ROLES}
    text = Text.assemble(("dopd top", "bold"), "  ", title, "  ")
    if not sight.connected:
        return text.append("the broker is out of reach", "bold red")
    if not sight.workers:
        return text.append("no worker is heard", "bold yellow")
    text.append(f"{len(sight.workers)} worker{'s' * (len(sight.workers) != 1)}: ")
    return text.append_tokens(
        _joined([(f"{number} {role}", ROLES[role]) for role, number in split.items() if number], ", ")
    )


def _traffic(sight: Sight, now_s: float) -> list[Text]:
    rates = sight.rates(now_s)
    if rates is None:
        return [Text("no window of requests yet", "dim")]
    line = Text.assemble(
        (f"{rates.requests_per_s:.1f}", "bold"), " requests/s", _expected(sight),
        "  ", (count(round(rates.tokens_per_s)), "bold"), " tokens/s  ", f"{rates.completed} done",
        (f"  {rates.failed} failed or left", "red" if rates.failed else "dim"),
    )  # fmt: skip
    return [line, _latencies(rates)]


def _expected(sight: Sight) -> str:
    return "" if sight.forecast is None else f" (expected {sight.forecast[0].requests_per_s:.1f})"


def _latencies(rates: Rates) -> Text:
    ttft = "-" if rates.ttft_s is None else f"{rates.ttft_s * 1e3:.0f} ms"
    tpot = "-" if rates.tpot_s is None else f"{rates.tpot_s * 1e3:.1f} ms"
    window = f"  (means of {rates.length_s:.0f} s, {since(rates.age_s)})"
    return Text.assemble("TTFT ", (ttft, "bold"), "  TPOT ", (tpot, "bold"), (window, "dim"))


def _queues(sight: Sight) -> Text:
    states = [state for state, _ in sight.gateways.values()]
    if not states:
        return Text("no gateway is heard", "bold yellow")
    waiting = sum(state.waiting for state in states)
    return Text.assemble(
        (count(waiting), "bold yellow" if waiting else "bold"), " waiting",
        f" ({count(sum(state.waiting_prefill_tokens for state in states))} tokens)  ",
        (count(sum(state.running for state in states)), "bold"), " running",
        (f"  {len(states)} gateway{'s' * (len(states) != 1)}", "dim"),
    )  # fmt: skip


def _table(sight: Sight, now_s: float, width: int, room: int) -> Table:
    columns = fitting(width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim", collapse_padding=True)
    for column in columns:
        table.add_column(
            column.heading, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis",
            min_width=min(column.cells, 4), max_width=column.cells,
        )  # fmt: skip
    seen = [sight.workers[name] for name in sorted(sight.workers, key=_natural)]
    shown = seen if len(seen) <= room else seen[: room - 1]
    for worker in shown:
        table.add_row(*[column.text(worker, now_s) for column in columns])
    if len(shown) < len(seen):
        table.add_row(Text(f"+ {len(seen) - len(shown)}", "dim"))
    return table


def fitting(width: int) -> tuple[Column, ...]:
    """The columns that have room."""
    columns = list(COLUMNS)
    while sum(column.cells + GAP for column in columns) - GAP > width:
        last = max(columns, key=lambda column: column.leaves)
        if not last.leaves:
            break
        columns.remove(last)
    return tuple(columns)


def _natural(worker_id: str) -> tuple[str, int, str]:
    """w2 before w10."""
    digits = worker_id[len(worker_id.rstrip("0123456789")) :]
    return worker_id[: len(worker_id) - len(digits)], int(digits or 0), worker_id


def _phase(worker: Seen) -> Text:
    return Text(worker.state.phase, PHASES.get(worker.state.phase, "bold red"))


def _kv(worker: Seen) -> float:
    return worker.state.kv_used_tokens / max(1, worker.state.kv_total_tokens)


def _bar(share: float) -> str:
    full = round(min(1.0, share) * BAR_CELLS)
    return "█" * full + "░" * (BAR_CELLS - full)


def _decisions(sight: Sight, now_s: float) -> list[Text]:
    if sight.decisions is None:
        return [Text("no planner answers", "bold yellow")]
    if not sight.decisions:
        return [Text("no decision yet", "dim")]
    lines = [_decision("last decision", sight.decisions[-1], now_s)]
    change = sight.last_change
    if change is not None and change is not sight.decisions[-1]:
        lines.append(_decision("last change  ", change, now_s))
    return lines


def _decision(name: str, record: DecisionRecord, now_s: float) -> Text:
    text = Text.assemble((name, "dim"), f"  {since(now_s - record.at_s)}: ", (record.reason, "bold"))
    text.append(f" ({record.why}), {record.prefill}P {record.decode}D")
    if record.dry_run:
        text.append(" dry run", "yellow")
    for change in record.changes:
        text.append("  ").append_tokens(_change(change))
    return text


def _change(change: Change) -> list[tuple[str, str]]:
    took = change.drained_s if change.outcome == "drained" else change.accepting_s
    after = "" if took is None else f" in {took:.2f} s"
    outcome = f" {change.outcome or 'commanded'}{after}"
    return [(f"{change.worker_id} {change.before}→", ""), (change.role, ROLES[change.role]), (outcome, "dim")]


def _joined(parts: Sequence[tuple[str, str]], between: str) -> list[tuple[str, str]]:
    return [piece for part in parts for piece in ((between, ""), part)][1:]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line
