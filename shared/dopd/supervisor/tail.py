"""The end of a process's log, for a person who wants to know why it did not start.

Consumes a log file of JSON lines or plain text and where to begin; produces a few readable lines.
"""

from pathlib import Path
from typing import Any

import msgspec

LINES = 15
_COMMON = ("event", "level", "timestamp", "service", "exception")


def tail(path: Path, begin: int = 0) -> list[str]:
    """The last lines that were written after the byte `begin`."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    return [out for line in text.splitlines() for out in readable(line)][-LINES:]


def readable(line: str) -> list[str]:
    """A JSON event as `event key=value …`, with its traceback below; any other line as it is."""
    try:
        event = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return [line]
    fields = [f"{key}={value}" for key, value in event.items() if key not in _COMMON]
    return [" ".join([str(event.get("event", "")), *fields]), *str(event.get("exception", "")).splitlines()]
