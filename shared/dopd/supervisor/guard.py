"""The last resort against left-over processes: outlives the supervisor by a moment and kills what it left.

Consumes lines `+PGID` and `-PGID` on stdin until the supervisor closes the pipe, which the kernel does for it however
it dies; produces SIGKILL to every process group still listed. The kernel's death signal ends the supervisor's own
children, but not their children (an engine of a worker). Standard library only: it runs as a plain file.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Follow the list to its end, then kill what is on it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
