"""Tables for the terminal: one run's summary, and several results side by side. Consumes `Stored`s; produces rich text.

Goodput and attainment come first, what failed next, latencies with their sample counts last.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dopd_loadgen.report.comparison import comparison, comparison_cells, names
from dopd_loadgen.report.notes import notes
from dopd_loadgen.report.result import Stored
from dopd_loadgen.report.samples import part_rows
from dopd_loadgen.report.summary import Figures
from dopd_loadgen.report.wording import (
    PART_HEADER,
    PHASE_HEADER,
    latency_caption,
    latency_cells,
    latency_header,
    latency_rows,
    part_cells,
    phase_cells,
    summary_rows,
)


def show(stored: Sequence[Stored], console: Console | None = None) -> None:
    """Print one summary per result of ours, and the comparison when there is more than one result or a foreign one."""
    console = console or Console()
    for one in stored:
        if one.summary is not None:
            console.print(summary_table(one))
    if len(stored) > 1 or stored[0].summary is None:
        console.print(comparison_table(stored))


def summary_table(stored: Stored) -> RenderableType:
    """One run of ours."""
    summary = stored.summary
    assert summary is not None
    said = [Text(f"! {note}", style="bold yellow") for note in notes(summary)]
    head = Table(title=Text(f"Serving result: {stored.label}", style="bold"), show_header=False, box=None)
    for title, text in summary_rows(summary):
        head.add_row(title, Text(text))
    parts: list[RenderableType] = [head, *said, _latency_table(summary.figures)]
    if len(summary.phases) > 1:
        phases = [phase_cells(name, figures) for name, figures in summary.phases.items()]
        parts.append(_plain_table("Phases", PHASE_HEADER, phases))
    if rows := part_rows(stored):
        cells = [part_cells(name, stats) for name, stats in rows]
        parts.append(_plain_table("What the first and the second token waited for (ms)", PART_HEADER, cells))
    return Group(*parts)


def _latency_table(figures: Figures) -> RenderableType:
    header = latency_header(figures)
    table = Table(title="Latency (ms)", title_style="bold", caption=latency_caption(figures), caption_justify="left")
    for number, title in enumerate(header):
        table.add_column(title, justify="left" if number == 0 else "right", no_wrap=True)
    for title, spread in latency_rows(figures):
        table.add_row(*latency_cells(title, spread, len(header)))
    return table


def _plain_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def comparison_table(stored: Sequence[Stored]) -> RenderableType:
    """Results side by side, with ratios to the first."""
    table = Table(title="Comparison (× = ratio to the first)", title_style="bold")
    table.add_column("")
    for name in names(stored):
        table.add_column(Text(name), justify="right", overflow="fold")
    for title, rows in comparison(stored):
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for row in rows:
            table.add_row(f"{row.title} ({row.unit})" if row.unit else row.title, *comparison_cells(row))
    return table
