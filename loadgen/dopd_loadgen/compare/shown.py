"""A comparison's progress: a bar where there is a terminal, else a line now and then. To stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0


@contextmanager
def shown() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what is called with a stage, and how many of how many of its runs are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def tell(stage: str, done: int, of: int) -> None:
            bars.update(task, description=stage, completed=done, total=of)

        yield tell


def _lines() -> Callable[[str, int, int], None]:
    last_stage, next_s = "", 0.0

    def tell(stage: str, done: int, of: int) -> None:
        nonlocal last_stage, next_s
        now_s = time.monotonic()
        if stage == last_stage and now_s < next_s:
            return
        last_stage, next_s = stage, now_s + LINE_EVERY_S
        print(f"{stage}: {done} of {of}", file=sys.stderr, flush=True)

    return tell
