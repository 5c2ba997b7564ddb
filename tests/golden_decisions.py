"""The decisions of planners under a seeded virtual load, as `tests/golden/decisions` keeps them.

`.venv/bin/python -m tests.golden_decisions` writes them anew, when planners are meant to decide otherwise; what it
prints is what has changed. Consumes nothing; produces one JSON file per planner.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from dopd.obs.explain import split
from dopd.obs.log import logs_from
from dopd_loadgen.compare import whatif
from dopd_proto.control import DecisionRecord

FOLDER = Path(__file__).parent / "golden" / "decisions"
PLANNERS = ("dopd", "dopd-paper", "dyn-sla", "dyn-load")
LOAD = (
    "--trace", "shift-step", "--part", "20", "--duration", "60", "--workers", "6", "--rate", "0.9", "--max-osl", "600",
    "--profile", "a100-qwen2.5-14b-bf16-tp1", "--seed", "3",
)  # fmt: skip
"""Prompts, then answers, then prompts: there is something to decide."""


def made(planner: str) -> list[str]:
    """The decisions, one line each: when, who wanted it, the reason, the split, and the commands with their outcome."""
    with logs_from("error"):
        found = whatif.replayed(whatif.parser().parse_args([*LOAD, "--policy", planner]))
    return [line(record) for record in found.decisions]


def line(record: DecisionRecord) -> str:
    """One decision."""
    commands = [f"{c.worker_id}>{c.role} {c.outcome or 'open'}" for c in record.changes]
    return " | ".join([f"{record.at_s:7.2f} s", record.why, record.reason, split(record), ", ".join(commands) or "-"])


def kept(planner: str) -> list[str]:
    """What the file says; nothing where there is none."""
    file = FOLDER / f"{planner}.json"
    return json.loads(file.read_text())["decisions"] if file.exists() else []


def differences(planner: str, now: Sequence[str]) -> str:
    """Line by line, empty where there is none."""
    return "\n".join(
        difflib.unified_diff(kept(planner), now, f"{planner}, golden", f"{planner}, now", lineterm="", n=1)
    )


def write(planner: str) -> str:
    """Keep what it decides now; what has changed."""
    now = made(planner)
    changed = differences(planner, now)
    FOLDER.mkdir(parents=True, exist_ok=True)
    written = {"command": " ".join(["dopd whatif", *LOAD, "--policy", planner]), "decisions": now}
    (FOLDER / f"{planner}.json").write_text(json.dumps(written, indent=1) + "\n")
    return changed


if __name__ == "__main__":
    for name in PLANNERS:
        print(write(name) or f"{name}: as before")
