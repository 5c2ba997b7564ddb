"""Logs: one event per line, named in past tense, with fields; JSON into a file, columns and colours on a terminal.

Consumes level and format (config section `[log]`); produces `get_logger`, and sends the standard library's warnings
(nats, uvicorn, asyncio) through the same formatter. INFO stays bounded per run, DEBUG is per request; per token: none.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def get_logger(**fields: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `fields` to each event: `get_logger().info("role_changed", worker_id="w1")`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


@contextmanager
def logs_from(level: Level) -> Iterator[None]:
    """For a program that has services run inside of it: what they log below `level` is not its user's business."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def set_up(service: str, level: Level = "info", form: Format = "auto", stream: TextIO | None = None) -> None:
    """Configure this process, once, at its start. `auto` is console on a terminal and JSON elsewhere."""
    out = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _console(out) if form == "console" or (form == "auto" and out.isatty()) else _json()
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    _send_through(out, [*shared, _logger_name], render, max(LEVELS[level], logging.WARNING))


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _console(out: TextIO) -> list[structlog.typing.Processor]:
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]


def _logger_name(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    record = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event


def _send_through(
    out: TextIO, before: list[structlog.typing.Processor], render: list[structlog.typing.Processor], level: int
) -> None:
    """Give the standard library's root logger our form. Libraries speak at WARNING and above only."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
