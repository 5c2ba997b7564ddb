"""How long a role change takes on a live emulated cluster under load, per drain mode. Asserts nothing about time.

`accepting` is the worker's own time of taking work of the new role minus the time of the command, `drained` that of the
end of its old work.
"""

import sys
from collections import defaultdict
from itertools import cycle
from pathlib import Path

import pytest

from dopd_proto.base import DrainMode, Role
from tests.e2e.live import OTHER, demo, live

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

DRAINS: tuple[DrainMode, ...] = ("overlap", "migrate", "wait")
PROFILE, ISL, OSL, CLIENTS, CHANGES = "h100-llama-70b-fp8-tp2", 4000, 200, 48, 20


async def test_times_of_role_changes(tmp_path: Path) -> None:
    times: dict[DrainMode, list[tuple[float, float]]] = defaultdict(list)
    with demo(tmp_path, engine__profile=PROFILE, worker__max_prefills=8) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        async with live(up) as clients, clients.closed_load(CLIENTS, ISL, OSL):
            for drain in DRAINS:
                roles: cycle[Role] = cycle(("prefill", "decode"))
                for role, _ in zip(roles, range(CHANGES), strict=False):
                    await clients.until(
                        lambda role=role: any(clients.in_flight(w) >= 5 for w in clients.with_role(role)),  # type: ignore[misc]
                        60.0,
                        f"a busy {role} worker",
                    )
                    busiest = max(clients.with_role(role), key=clients.in_flight)
                    reply = await clients.set_role(busiest, OTHER[role], drain, until="drained")
                    times[drain].append((reply.accepting_s or 0.0, reply.drained_s or 0.0))
        up.note()
        up.interrupt()
        up.code(60.0)
    print(f"\n{'drain':<10}{'n':>4}{'accepting p50':>16}{'max':>10}{'drained p50':>16}{'max':>10}   (seconds)")
    for drain, pairs in times.items():
        accepting, drained = (sorted(column) for column in zip(*pairs, strict=True))
        middle = len(pairs) // 2
        print(
            f"{drain:<10}{len(pairs):>4}{accepting[middle]:>16.4f}{accepting[-1]:>10.4f}"
            f"{drained[middle]:>16.3f}{drained[-1]:>10.3f}"
        )
