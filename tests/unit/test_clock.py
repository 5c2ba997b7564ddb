"""A process's clock when the machine's is set."""

import time

import pytest

from dopd.runtime.clock import OFFSET_VARIABLE, RealRuntime, offset_s


def test_a_step_of_the_wall_clock_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, wall = RealRuntime(), time.time
    before_s = runtime.now()
    monkeypatch.setattr(time, "time", lambda: wall() - 3600.0)
    assert 0.0 <= runtime.now() - before_s < 60.0


def test_a_process_started_after_the_step_agrees_with_its_elders(monkeypatch: pytest.MonkeyPatch) -> None:
    elder, wall = RealRuntime(), time.time
    handed_down = repr(offset_s())
    monkeypatch.setattr(time, "time", lambda: wall() + 3600.0)
    assert RealRuntime().now() - elder.now() > 3000.0
    monkeypatch.setenv(OFFSET_VARIABLE, handed_down)
    assert abs(RealRuntime().now() - elder.now()) < 60.0
