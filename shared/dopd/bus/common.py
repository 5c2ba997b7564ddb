"""What both buses do alike: report faults, and answer requests of `serve`.

Consumes: handlers. Produces: BusFault to whoever asked for it, else a log line; a Failure for every error.
"""

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from dopd.bus import BusFault, Delivery
from dopd.errors import BadRequest, BusClosed, BusError, PayloadTooLarge, RequestError, error_from
from dopd_proto.base import Message
from dopd_proto.codec import DecodeError
from dopd_proto.request import Failure

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
T = TypeVar("T")

DEFAULT_MAX_PENDING = 65_536
DEFAULT_MAX_PAYLOAD = 8 * 1024 * 1024

_log = logging.getLogger("dopd.bus")


def shown(url: str) -> str:
    """A broker's address for people and logs: without the user and the password or token that it may have."""
    # Up to the last @ of each: a password that was not percent-encoded may have anything in it.
    return ",".join(re.sub(r"^(\w+://)?.*@", r"\1", each) for each in re.split(r",(?=\w+://)", url))


def may_answer(reply_to: str, faults: "FaultBox") -> bool:
    """Whether it is an inbox. Askers choose it: nobody shall say with an answer of ours what he may not say himself."""
    if not reply_to.startswith(("dopd.", "$")):
        return True
    faults.report("no_inbox", reply_to, "an answer was wanted there, and not sent")
    return False


class FaultBox:
    """Counts each fault and hands it to all handlers. Without one it is logged: silence would hide lost messages."""

    def __init__(self, bus_name: str) -> None:
        self._bus_name = bus_name
        self._handlers: list[Callable[[BusFault], None]] = []
        self.counts: Counter[str] = Counter()

    def add(self, handler: Callable[[BusFault], None]) -> None:
        self._handlers.append(handler)

    def report(self, kind: str, subject: str, detail: str, error: BaseException | None = None) -> None:
        """Never raises: a fault handler that fails must not stop deliveries."""
        self.counts[kind] += 1
        if not self._handlers:
            _log.warning("%s: %s on %s: %s", self._bus_name, kind, subject or "-", detail, exc_info=error)
        for handler in self._handlers:
            try:
                handler(BusFault(kind, subject, detail))
            except Exception:
                _log.exception("%s: a fault handler failed on %s", self._bus_name, kind)


class TaskSet:
    """Tasks in flight: kept alive (the loop holds weak references only), waited for and cancelled together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout_s: float) -> None:
        """Wait until all are done, at most `timeout_s`; what is left then is cancelled."""
        mine = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not mine]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, timeout_s))
        self.cancel()

    def cancel(self) -> None:
        mine = asyncio.current_task() if _inside_loop() else None
        for task in self._tasks:
            if task is not mine:
                task.cancel()


def refuse_undecodable(
    subject: str, reply_to: str, error: DecodeError, send: Callable[[str, Message], None], faults: FaultBox
) -> None:
    """Report bytes that are no message of their subject. One who waits for an answer gets it, instead of a time-out."""
    faults.report("decode", subject, str(error))
    if reply_to:
        with contextlib.suppress(BusClosed):
            send(reply_to, BadRequest(f"the payload is no message for {subject}: {error}", error.param).failure())


async def end_task(task: asyncio.Task[Any], timeout_s: float = 1.0) -> bool:
    """Cancel until it is over; whether it is.

    Once is not enough for code that waits with `asyncio.wait_for`: Python 3.11 loses a cancellation that comes
    together with the outcome, and a loop around it then goes on for ever.
    """
    for _ in range(int(timeout_s / 0.05) + 1):
        task.cancel()
        await asyncio.wait((task,), timeout=0.05)
        if task.done():
            return True
    return False


async def within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """The outcome of `work`. Raises TimeoutError, and ends the work as `end_task` does."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait((task,), timeout=timeout_s)
        if task.done():
            return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            await end_task(task)


def _inside_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def respond_to(
    delivery: Delivery[M],
    handler: Callable[[M], Awaitable[Message]],
    send: Callable[[str, Message], None],
    faults: FaultBox,
) -> None:
    """Run a `serve` handler and send its answer, or the Failure that says why there is none."""
    answer = await answer_of(handler, delivery.message, delivery.subject, faults)
    if not delivery.reply_to:
        return
    try:
        send(delivery.reply_to, answer)
    except PayloadTooLarge as error:
        send(delivery.reply_to, error.failure())
    except BusClosed:
        faults.report("closed", delivery.subject, "closed before the answer was sent")


async def answer_of(handler: Callable[[M], Awaitable[Message]], message: M, subject: str, faults: FaultBox) -> Message:
    """The handler's answer. A RequestError is an answer too; anything else is a fault of ours and a 500."""
    try:
        return await handler(message)
    except RequestError as error:
        return error.failure()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        faults.report("handler", subject, detail, error)
        return Failure(code="internal_error", message=detail, status=500)


def expected(answer: Message, replies: tuple[type[R], ...], subject: str) -> R:
    """The answer, if it is one of `replies`. Raises the error that a Failure stands for, or BusError."""
    if isinstance(answer, replies):
        return answer
    if isinstance(answer, Failure):
        raise error_from(answer)
    raise BusError(f"{subject}: {type(answer).__name__} is no answer to this request")


def settle(future: asyncio.Future[Message], outcome: Message | BusError) -> None:
    """The first outcome counts; an answer after the time-out is nobody's."""
    if future.done():
        return
    if isinstance(outcome, BusError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
