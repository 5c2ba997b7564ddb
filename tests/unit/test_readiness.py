"""`/ready` of the operator port: a process is ready when its broker is there and it does its work, and not before."""

from typing import cast

import pytest

from dopd.bus import Bus
from dopd.obs.operator_http import NotYet
from dopd.runtime.readiness import Readiness


class Line:
    """As much of a bus as is asked."""

    connected = True


def test_a_process_that_is_starting_is_not_ready() -> None:
    with pytest.raises(NotYet, match="starting"):
        Readiness(cast(Bus, Line())).page()


def test_it_is_ready_when_it_does_its_work_and_says_what_is_missing_when_not() -> None:
    lacks = "no worker serves"
    readiness = Readiness(cast(Bus, Line()))
    readiness.when(lambda: lacks)
    with pytest.raises(NotYet, match="no worker serves"):
        readiness.page()
    lacks = ""
    assert readiness.page() == b"ready\n"


def test_without_its_broker_nothing_is_ready() -> None:
    line = Line()
    readiness = Readiness(cast(Bus, line))
    readiness.when()
    assert readiness.page() == b"ready\n"
    line.connected = False
    with pytest.raises(NotYet, match="broker"):
        readiness.page()
