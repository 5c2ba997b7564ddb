"""Processes that work off tasks. Consumes a function and tasks that can be pickled; produces their results as they end.

Children are started afresh (spawn), so they have no loop, lock or socket of their parent. They leave Ctrl-C to it, and
it ends them. One that dies, or a task that fails, ends the whole. With one job everything is done in this process.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from dopd.errors import DopdError, LoadError
from dopd.runtime.lifeline import die_with

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Sequence[T]], Iterator[tuple[int, R]]]
"""Yields the task's number and its result; which comes first is a matter of chance."""
END_S = 5.0


class Crashed(RuntimeError):
    """A child failed in a way that nobody meant; the text is its traceback."""


@contextmanager
def crew(function: Callable[[T], R], jobs: int) -> Iterator[Work[T, R]]:
    """Yields what works off tasks. Raises LoadError for what a task says on purpose, `Crashed` for anything else."""
    if jobs == 1:
        yield lambda tasks: ((number, function(task)) for number, task in enumerate(tasks))
        return
    members: list[tuple[SpawnProcess, Connection]] = []
    try:
        with _interrupts_ignored():
            for _ in range(jobs):
                members.append(_started(function))
        yield lambda tasks: _worked_off(members, tasks)
    finally:
        _end(members)


def _started(function: Callable[[Any], Any]) -> tuple[SpawnProcess, Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _worked_off(members: list[tuple[SpawnProcess, Connection]], tasks: Sequence[T]) -> Iterator[tuple[int, Any]]:
    todo = iter(enumerate(tasks))
    busy: dict[Connection, int] = {}
    for _, connection in members:
        _next(connection, todo, busy)
    while busy:
        for ready in wait(list(busy)):  # a child that dies closes its end, which counts as ready
            assert isinstance(ready, Connection)
            number = busy.pop(ready)
            try:
                ended, result = ready.recv()
            except EOFError as error:
                raise Crashed("a process ended in the midst of its work; was it killed for memory?") from error
            if ended == "refused":
                raise LoadError(*result)
            if ended == "crashed":
                raise Crashed(result)
            _next(ready, todo, busy)
            yield number, result


def _next(connection: Connection, todo: Iterator[tuple[int, Any]], busy: dict[Connection, int]) -> None:
    for number, task in todo:
        connection.send(task)
        busy[connection] = number
        return


def _serve(connection: Connection, function: Callable[[Any], Any], parent_pid: int) -> None:
    """A child's life: until its parent closes the line or ends it, or is ended itself in whatever way."""
    die_with(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(_done(function, connection.recv()))


def _done(function: Callable[[Any], Any], task: Any) -> tuple[str, Any]:
    try:
        return "done", function(task)
    except LoadError as error:
        return "refused", (error.where, error.reason)
    except DopdError as error:
        return "refused", ("compare", str(error))
    except Exception:
        return "crashed", traceback.format_exc()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What is started within ignores Ctrl-C from its first moment on: that is handed down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(members: list[tuple[SpawnProcess, Connection]]) -> None:
    for process, connection in members:
        connection.close()
        process.terminate()
    for process, _ in members:
        process.join(END_S)
        if process.is_alive():
            process.kill()
            process.join(END_S)
