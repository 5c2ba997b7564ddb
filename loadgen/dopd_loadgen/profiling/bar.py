"""How far a measurement is: a bar on a terminal, else a line now and then. To stderr, so that output can be piped."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


@contextmanager
def counted(what: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with the number that are done."""
    console = Console(stderr=True)
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task("", total=total)
            yield lambda done: bars.update(task, completed=done)
    else:
        yield _lines(what, total)


def _lines(what: str, total: int) -> Callable[[int], None]:
    next_s = time.monotonic() + LINE_EVERY_S

    def show(done: int) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + LINE_EVERY_S
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return show
