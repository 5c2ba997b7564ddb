"""`dopd down`, `dopd status` and `dopd clean`: what a supervisor left in `.dopd/`, from outside of it.

Consumes the pid files; produces SIGTERM to the supervisor (which stops the rest in order), and SIGKILL to whatever is
left after the limit.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dopd import config as configs
from dopd.errors import DopdError
from dopd.runtime.main import add_config_argument
from dopd.supervisor.state import SUPERVISOR, Process, StateDir

POLL_S = 0.05
LIMIT_S = 60.0  # above the sum of the grace times


def main(argv: Sequence[str]) -> int:
    """`dopd down`: stop it and wait until all is gone."""
    state, code = _opened("dopd down", "Stop what `dopd up` started here; the state stays.", argv)
    return asyncio.run(_down(state)) if state else code


def status(argv: Sequence[str]) -> int:
    """`dopd status`: the processes that run, their metrics, and the live page; exit code 1 when there are none."""
    state, code = _opened("dopd status", "Show the processes that `dopd up` started here.", argv)
    if state is None:
        return code
    running = list(state.processes())
    for name, process in running:
        print(f"{name:<11} pid {process.pid:<8} {_metrics_url(state, name)}".rstrip())
    if page := state.page_url():
        print(f"{'live page':<28} {page}")
    if not running:
        print(f"nothing runs (state in {state.root})")
    return 0 if running else 1


def _metrics_url(state: StateDir, name: str) -> str:
    url = state.operator_url(name)
    return f"{url}/metrics" if url else ""


def clean(argv: Sequence[str]) -> int:
    """`dopd clean`: remove `.dopd/`. Refuses while something runs."""
    state, code = _opened("dopd clean", "Remove the state of `dopd up`: broker storage, logs, models.", argv)
    if state is None:
        return code
    if not state.root.exists():
        print(f"nothing to remove ({state.root})")
        return 0
    if not (state.run / "lock").exists():
        print(f"dopd clean: {state.root} is no state folder of dopd; nothing removed", file=sys.stderr)
        return 1
    if running := list(state.processes()):
        names = ", ".join(f"{name} (pid {process.pid})" for name, process in running)
        print(f"dopd clean: still running: {names}; `dopd down` first", file=sys.stderr)
        return 1
    state.wipe()
    print(f"removed {state.root}")
    return 0


def _opened(prog: str, description: str, argv: Sequence[str]) -> tuple[StateDir | None, int]:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_config_argument(parser)
    args = parser.parse_args(argv)
    try:
        return StateDir(Path(configs.load(args.config).cluster.state_dir)), 0
    except DopdError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return None, 2


async def _down(state: StateDir) -> int:
    running = dict(state.processes())
    if not running:
        state.free_shared_memory()
        print(f"nothing runs (state in {state.root})")
        return 0
    supervisor = running.get(SUPERVISOR)
    if supervisor is not None:
        print(f"stopping dopd (pid {supervisor.pid})", flush=True)
        supervisor.send(signal.SIGTERM)
        if await _gone([supervisor], LIMIT_S):
            await _gone(list(running.values()), 2.0)
    left = [process for process in running.values() if process.alive()]
    for process in left:
        _kill_group(process)
    if not await _gone(left, 5.0):
        print("dopd down: could not end " + ", ".join(str(x.pid) for x in left if x.alive()), file=sys.stderr)
        return 1
    state.free_shared_memory()
    print("stopped")
    return 0


def _kill_group(process: Process) -> None:
    """Each child leads a group of its own; the supervisor may share one with a shell."""
    if os.getpgid(process.pid) == process.pid:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send(signal.SIGKILL)


async def _gone(processes: Sequence[Process], limit_s: float) -> bool:
    """Whether all of them ended within the limit."""
    for _ in range(int(limit_s / POLL_S)):
        if not any(process.alive() for process in processes):
            return True
        await asyncio.sleep(POLL_S)
    return False
