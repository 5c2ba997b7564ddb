"""Planners decide as they did, until somebody means them to decide otherwise."""

import pytest

from tests.golden_decisions import PLANNERS, differences, made


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_planner_decides_as_it_did(planner: str) -> None:
    now = made(planner)
    changed = differences(planner, now)
    assert not changed, f"if this is meant: python -m tests.golden_decisions\n{changed}"
    assert any(">" in line.split(" | ")[3] for line in now), "a log without a role change shows little"
