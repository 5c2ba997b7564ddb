"""The end of a log, as a person reads it."""

from pathlib import Path

from dopd.supervisor.tail import LINES, readable, tail


def test_an_event_is_shown_without_what_is_the_same_in_every_line() -> None:
    line = '{"event": "service_failed", "detail": "no port", "level": "error", "timestamp": "t", "service": "w1"}'
    assert readable(line) == ["service_failed detail=no port"]


def test_a_traceback_stands_on_lines_of_its_own() -> None:
    assert readable('{"event": "crashed", "exception": "Traceback\\n  line 1"}') == ["crashed", "Traceback", "  line 1"]


def test_other_lines_stay_as_they_are() -> None:
    assert readable("INFO: [1, 2") == ["INFO: [1, 2"]
    assert readable("[1]") == ["[1]"]


def test_only_the_last_lines_after_the_begin_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    assert tail(log) == []
    log.write_text("of a former run\n" + "".join(f"{n}\n" for n in range(40)))
    assert tail(log, log.stat().st_size) == []
    assert tail(log, len("of a former run\n")) == [str(n) for n in range(40 - LINES, 40)]
