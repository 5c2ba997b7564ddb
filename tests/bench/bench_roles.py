"""How long a role change takes on a live emulated cluster under load, per drain mode. Asserts nothing about time.

`accepting` is the worker's own time of taking work of the new role minus the time of the command, `drained` that of the
end of its old work.
"""

import sys
from pathlib import Path

import pytest

from dopd_proto.base import DrainMode, Role
from tests.e2e.live import OTHER, Live, demo, live

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

DRAINS: tuple[DrainMode, ...] = ("overlap", "migrate", "wait")
ROLES: tuple[Role, Role] = ("prefill", "decode")
PROFILE, ISL, OSL, CLIENTS, CHANGES = "h100-llama-70b-fp8-tp2", 1000, 40, 40, 20


async def test_times_of_role_changes(tmp_path: Path) -> None:
    with demo(tmp_path, engine__profile=PROFILE, worker__max_prefills=6) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        print(f"\n{'drain':<10}{'n':>4}{'accepting p50':>16}{'max':>10}{'drained p50':>16}{'max':>10}   (seconds)")
        async with live(up) as clients, clients.closed_load(CLIENTS, ISL, OSL):
            for drain in DRAINS:
                _show(drain, [await _change(clients, drain, role) for role in ROLES * (CHANGES // 2)])
        up.note()
        up.interrupt()
        up.code(60.0)


async def _change(clients: Live, drain: DrainMode, role: Role) -> tuple[float, float]:
    """Change a busy worker of this role; seconds until it takes new work, and until its old work is gone."""

    def busy() -> list[str]:
        return [w for w in clients.with_role(role) if clients.in_flight(w) >= 5]

    await clients.until(busy, 60.0, f"a busy {role} worker")
    reply = await clients.set_role(max(busy(), key=clients.in_flight), OTHER[role], drain, until="drained")
    return reply.accepting_s or 0.0, reply.drained_s or 0.0


def _show(drain: DrainMode, pairs: list[tuple[float, float]]) -> None:
    accepting, drained = (sorted(column) for column in zip(*pairs, strict=True))
    middle = len(pairs) // 2
    print(
        f"{drain:<10}{len(pairs):>4}{accepting[middle]:>16.4f}{accepting[-1]:>10.4f}"
        f"{drained[middle]:>16.3f}{drained[-1]:>10.3f}",
        flush=True,
    )
