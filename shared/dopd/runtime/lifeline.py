"""Dying with the parent: a child of `dopd up` must not outlive it, even when the parent is killed with SIGKILL.

Consumes the parent's pid (DOPD_PARENT_PID, set by whoever starts the process); produces a death signal from the kernel
(Linux), elsewhere a task that looks once a second whether the parent is still there.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PARENT_VARIABLE = "DOPD_PARENT_PID"
_PR_SET_PDEATHSIG = 1
# Loaded at import: between fork and exec nothing may take a lock that another thread held.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with(parent_pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `how` when the parent dies; ends this process at once if it is dead already.

    Safe between fork and exec. The setting survives exec, but is not inherited by further children.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before prctl: no signal will ever come
        os._exit(128 + int(how))


def hold_to_parent(env: Mapping[str, str] = os.environ) -> None:
    """In a service: die with the parent that DOPD_PARENT_PID names, if it names one."""
    with contextlib.suppress(ValueError):
        if parent := int(env.get(PARENT_VARIABLE, "0")):
            die_with(parent)


async def watch_parent(env: Mapping[str, str] = os.environ) -> None:
    """Where the kernel sends no death signal: end this process soon after its parent."""
    parent = int(env.get(PARENT_VARIABLE, "0") or 0)
    while _libc is None and parent:
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        await asyncio.sleep(1.0)
