"""A supervisor with stand-in processes instead of services, as a program of its own for tests.

    python -m tests.e2e.stand_ins STATE_DIR SCENARIO

Each stand-in appends what happens to it to STATE_DIR/events.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from dopd.errors import DopdError
from dopd.supervisor.console import Console
from dopd.supervisor.ready import file_appears
from dopd.supervisor.run import Supervisor, supervise
from dopd.supervisor.spec import Spec
from dopd.supervisor.state import StateDir

BODY = """
import os, signal, subprocess, sys, time
folder, name, how = sys.argv[1:4]
def told(what):
    with open(folder + "/events", "a") as events:
        events.write(f"{name} {what}\\n")
def stop(*_):
    told("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if how.endswith("deaf") else stop)
told("started")
if how == "with-child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    told(f"child {child.pid}")
if how == "wrong":
    print("no such setting")
    sys.exit(2)
starts = sum(line == f"{name} started\\n" for line in open(folder + "/events"))
if how == "never" or (how == "flaky" and starts < 3):
    print("something broke")
    sys.exit(7)
if how == "slow":
    time.sleep(12)
open(folder + "/run/" + name + ".ready", "w").close()
if how == "dies-once" and starts == 1:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(0.05)
"""


def stand_in(state: StateDir, name: str, how: str = "well", rank: int = 1, timeout_s: float = 20.0) -> Spec:
    """A process that behaves as `how` says."""
    return Spec(
        name,
        (sys.executable, "-I", "-c", BODY, str(state.root), name, how),
        file_appears(state.run / f"{name}.ready"),
        stop_rank=rank,
        grace_s=30.0 if how == "deaf" else 1.0,
        ready_timeout_s=timeout_s,
    )


def cluster(state: StateDir, odd: str = "well") -> list[list[Spec]]:
    """A broker, then two workers and a gateway; the second worker is the odd one."""
    return [
        [stand_in(state, "nats", rank=9)],
        [stand_in(state, "w1"), stand_in(state, "w2", odd), stand_in(state, "gateway", rank=0)],
    ]


SCENARIOS: dict[str, Callable[[StateDir], list[list[Spec]]]] = {
    "missing": lambda state: [[Spec("nats", ("/nonexistent/program",), file_appears(state.run / "nats.ready"))]],
    "late": lambda state: [[stand_in(state, "nats"), stand_in(state, "w1", "never-ready-in-time", timeout_s=0.01)]],
}


def main(folder: str, scenario: str) -> int:
    """Run until stopped."""
    state = StateDir(Path(folder))

    async def work(supervisor: Supervisor, console: Console) -> None:
        await supervisor.start_all(SCENARIOS.get(scenario, lambda s: cluster(s, scenario))(state))
        console.line("all ready")
        await supervisor.stop_asked.wait()

    try:
        return supervise(state, work)
    except DopdError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
