"""A comparison on the terminal: one table per trace and profile. Consumes a `Comparison`; prints."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dopd_loadgen.compare import wording
from dopd_loadgen.compare.figures import largest, steps
from dopd_loadgen.compare.result import Comparison

WIDTH = 190
"""What the widest table takes; a narrower terminal wraps its lines, but loses no figure."""


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print everything."""
    console = console or Console(width=WIDTH, soft_wrap=True)
    for note in wording.general_notes(comparison):
        console.print(Text(note))
    for trace, profile in wording.grounds(comparison):
        console.print(_table(comparison, trace, profile))
        if found := largest(comparison, trace, profile):
            rows = [wording.largest_cells(one) for one in found]
            console.print(_plain("Largest rate that attains a target", wording.LARGEST_HEADER, rows))
        for note in wording.notes(comparison, trace, profile):
            console.print(Text(f"- {note}"))


def _table(comparison: Comparison, trace: str, profile: str) -> Table:
    table = _plain(wording.title(trace, profile), wording.header(comparison), [])
    for step in steps(comparison, trace, profile):
        table.add_section()
        table.add_row(Text(wording.rate_title(step), style="bold"))
        for line in step.lines:
            table.add_row(*map(Text, wording.cells(line)), style="bold" if line.best else None)
        limit = wording.bound_cells(step, step.lines[0].gpus)
        if limit is not None:
            table.add_row(*map(Text, limit), style="italic")
    return table


def _plain(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
