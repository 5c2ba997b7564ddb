"""A run in virtual time is the same bit by bit: whatever the hash seed, and with steps advanced together or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.replay import POLICIES, digest, replay

ROOT = Path(__file__).parents[2]


def test_a_run_does_not_depend_on_the_interpreters_hash_seed() -> None:
    command = [sys.executable, "-m", "tests.integration.replay", "1", "2"]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("0", "1", "4242")
    ]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 6


@pytest.mark.parametrize("seed", range(200))
def test_steps_advanced_together_give_the_same_run_as_single_steps(seed: int) -> None:
    policy = POLICIES[seed % len(POLICIES)]
    single, together = replay(seed, together=False, policy=policy), replay(seed, together=True, policy=policy)
    for place, (one, other) in enumerate(zip(single, together, strict=False)):
        assert one == other, f"entry {place} of {len(single)}"
    assert digest(single) == digest(together)


def test_a_run_has_dispatches_role_changes_aborts_and_a_second_attempt_in_it() -> None:
    log = replay(1, together=False)
    kinds = {entry[0] for entry in log}
    assert kinds == {"dispatch", "role", "answer"}
    assert any(entry[0] == "answer" and entry[3] for entry in log)
    assert any(entry[0] == "dispatch" and entry[3] > 1 for seed in (1, 2, 3) for entry in replay(seed, False))
