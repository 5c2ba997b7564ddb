"""A run's progress on the terminal: a bar where there is one, else a line every few seconds. To stderr, so that what a
run prints can be piped.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from dopd_loadgen.drive import Progress

LINE_EVERY_S = 10.0


@contextmanager
def shown(span_s: float) -> Iterator[Callable[[Progress], None]]:
    """Yields what `drive` is to call. `span_s` is the length of the schedule."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as bars:
            task = bars.add_task("", total=span_s or None, said="")
            yield lambda now: bars.update(task, completed=min(now.elapsed_s, span_s), said=said(now))
    else:
        yield _lines(span_s)


def _bars(console: Console) -> Bars:
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    return Bars(*columns, console=console, transient=True)


def _lines(span_s: float) -> Callable[[Progress], None]:
    next_s = LINE_EVERY_S

    def show(now: Progress) -> None:
        nonlocal next_s
        if now.elapsed_s >= next_s:
            next_s = now.elapsed_s + LINE_EVERY_S
            print(f"{now.elapsed_s:7.0f} of {span_s:.0f} s: {said(now)}", file=sys.stderr, flush=True)

    return show


def said(now: Progress) -> str:
    """How far the run is, in words."""
    failed = f", {now.failed} failed" if now.failed else ""
    late = f", client late by {now.lag_s * 1e3:.0f} ms" if now.lag_s > 0.05 else ""
    return f"{now.sent}/{now.planned} sent, {now.running} running, {now.done} done{failed}{late}"
