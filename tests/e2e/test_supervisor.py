"""The supervisor with stand-in processes: order, restarts, and that nothing of it is ever left."""

import os
import signal
import sys
from pathlib import Path

import pytest

from dopd.supervisor import down
from dopd.supervisor.spec import backoff_s
from tests.e2e.running import Running, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def stand_ins(folder: Path, scenario: str = "well") -> Running:
    return Running(["tests.e2e.stand_ins", str(folder), scenario], folder)


def test_a_stage_starts_when_the_one_before_is_ready_and_stops_in_the_order_of_ranks(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as up:
        up.wait_for("all ready")
        up.note()
        up.interrupt()
        assert up.code() == 0
        started = [line for line in up.events if line.endswith("started")]
        stopped = [line for line in up.events if line.endswith("stopped")]
    assert started[0] == "nats started"
    assert (stopped[0], stopped[-1]) == ("gateway stopped", "nats stopped")
    assert len(started) == len(stopped) == 4


def test_each_ready_process_is_told_with_the_seconds_it_took(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as up:
        up.wait_for("all ready")
        for name in ("nats", "w1", "w2", "gateway"):
            assert any(name in line and "ready in" in line for line in up.output.splitlines())


def test_one_ctrl_c_leaves_no_process_and_no_pid_file(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "with-child") as up:
        up.wait_for("all ready")
        assert len(up.note()) == 5
        up.interrupt()
        up.code()
        assert up.left() == []
        assert list(up.state.run.glob("*.pid")) == []


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace_time(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "rather-deaf") as up:
        up.wait_for("all ready")
        up.note()
        up.interrupt()
        assert up.code() == 0
        assert "w2" in up.output
        assert "did not stop in 1 s: killed" in up.output
        assert up.left() == []


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "deaf") as up:
        up.wait_for("all ready")
        up.note()
        up.interrupt()
        up.wait_for("stopping")
        up.interrupt()
        assert up.code() == 128 + signal.SIGINT
        assert wait_until(lambda: up.left() == [], 2.0)


def test_sigkill_of_the_supervisor_leaves_nothing_not_even_children_of_children(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "with-child") as up:
        up.wait_for("all ready")
        up.note()
        assert len(up.left()) == 6
        up.process.kill()
        up.code()
        assert wait_until(lambda: up.left() == [], 5.0), up.left()


def test_a_crashed_process_is_started_again_and_the_crash_is_told(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "dies-once") as up:
        up.wait_for("all ready")
        up.wait_for("was ended by SIGKILL; starts again in 0.5 s")
        up.wait_for("ready again in")
        assert up.events.count("w2 started") == 2


def test_a_process_that_fails_at_first_gets_three_starts(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "flaky") as up:
        up.wait_for("all ready")
        assert "starts again in 0.5 s" in up.output
        assert "starts again in 1.0 s" in up.output


def test_a_process_that_never_starts_ends_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "never") as up:
        assert up.code() == 1
        assert "w2 does not start (exit code 7)" in up.output
        assert "| something broke" in up.output
        assert up.events.count("w2 started") == 3
        assert list(up.state.run.glob("*.pid")) == []


def test_a_process_that_is_configured_wrongly_is_not_tried_again(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "wrong") as up:
        assert up.code() == 1
        assert "| no such setting" in up.output
        assert up.events.count("w2 started") == 1


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "missing") as up:
        assert up.code() == 1
        assert "| /nonexistent/program: No such file or directory" in up.output


def test_all_ends_in_order_when_the_terminal_is_gone(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as up:
        up.wait_for("all ready")
        up.note()
        assert up.process.stdout is not None
        os.close(up.process.stdout.fileno())
        up.process.send_signal(signal.SIGHUP)
        assert up.process.wait(10.0) == 0
        assert up.events[-1] == "nats stopped"
        assert up.left() == []


def test_a_process_that_is_not_ready_in_time_ends_up(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "late") as up:
        assert up.code() == 1
        assert "w1 is not ready after" in up.output


def test_the_wait_between_starts_doubles_up_to_a_bound() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 10)] == [0.5, 1.0, 2.0, 30.0]


def test_a_second_supervisor_in_the_same_folder_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as up:
        up.wait_for("all ready")
        with stand_ins(tmp_path) as second:
            assert second.code() == 1
            assert f"dopd is already running here (pid {up.process.pid}" in second.output
        assert up.process.poll() is None
        assert len(up.note()) == 5


def test_after_sigkill_the_folder_can_be_used_again(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as up:
        up.wait_for("all ready")
        up.process.kill()
        up.code()
        with stand_ins(tmp_path) as next_one:
            next_one.wait_for("all ready")


def test_down_stops_all_and_returns_when_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOPD__CLUSTER__STATE_DIR", str(tmp_path))
    with stand_ins(tmp_path, "with-child") as up:
        up.wait_for("all ready")
        up.note()
        assert down.status([]) == 0
        assert down.clean([]) == 1
        assert "still running" in capsys.readouterr().err
        assert wait_until(lambda: down.main([]) == 0)
        assert up.left() == []
        assert up.code() == 0
    assert down.main([]) == 0
    assert "nothing runs" in capsys.readouterr().out


def test_down_does_not_touch_a_process_that_has_got_the_pid_of_a_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOPD__CLUSTER__STATE_DIR", str(tmp_path))
    with stand_ins(tmp_path) as up:
        up.wait_for("all ready")
        pid_file = up.state.run / "supervisor.pid"
        (tmp_path / "other" / "run").mkdir(parents=True)
        stale = tmp_path / "other" / "run" / "supervisor.pid"
        stale.write_text(pid_file.read_text().replace('"started":"', '"started":"9'))
        monkeypatch.setenv("DOPD__CLUSTER__STATE_DIR", str(tmp_path / "other"))
        assert down.main([]) == 0
        assert up.process.poll() is None


def test_clean_removes_the_state_but_no_folder_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOPD__CLUSTER__STATE_DIR", str(tmp_path / "state"))
    assert down.clean([]) == 0
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "precious").touch()
    assert down.clean([]) == 1
    assert (tmp_path / "state" / "precious").exists()
    with stand_ins(tmp_path / "state") as up:
        up.wait_for("all ready")
        up.note()
        up.interrupt()
        up.code()
    assert down.clean([]) == 0
    assert not (tmp_path / "state").exists()


def test_what_takes_long_is_named_every_few_seconds(tmp_path: Path) -> None:
    with stand_ins(tmp_path, "slow") as up:
        up.wait_for("waiting for w2 (logs: ", 30.0)
        up.wait_for("all ready", 30.0)
