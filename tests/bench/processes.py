"""What processes take: CPU seconds, resident memory and open files, out of /proc.

Consumes pids; produces `Taken`, of a process alone or with its children.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Taken:
    """`cpu_s` counts from the start."""

    cpu_s: float = 0.0
    rss_mb: float = 0.0
    files: int = 0


def taken(pid: int, children: bool = False) -> Taken:
    """Zeros for a process that is gone; with `children` the sum over all that live."""
    cpu_s, rss_mb, files = 0.0, 0.0, 0
    for member in _family(pid) if children else (pid,):
        with suppress(OSError):
            fields = _stat(member)
            cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS
            rss_mb += int(fields[21]) * _PAGE / 2**20
            files += sum(1 for _ in Path(f"/proc/{member}/fd").iterdir())
    return Taken(cpu_s, rss_mb, files)


def _stat(pid: int) -> list[str]:
    # The name is in brackets and may hold anything: fields count from its end, the state is the first.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _family(pid: int) -> Iterator[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    left = [pid]
    while left:
        yield (member := left.pop())
        left += parents.get(member, [])
