"""No process outlives the one that started it: Linux's parent-death signal, for EngineCore and for the LMCache server.

Consumes the parent's process id; produces a process that the kernel kills when its parent is gone.

    python -m dopd.engine.vllm.lifeline PARENT_PID COMMAND ARGUMENT...

The kernel's "parent" is the *thread* that started the process, so that thread has to live as long as the process.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """From now on SIGKILL ends this process when its parent dies. Elsewhere than on Linux: nothing."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        # It died before the call: the signal will never come.
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    # The setting survives exec.
    os.execv(sys.argv[2], sys.argv[2:])
