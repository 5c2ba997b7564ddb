"""The permission file says what SUBJECTS say."""

import pytest

from dopd.bus import permissions
from dopd.bus.permissions import ANSWERED, KNOWN_AS, LOGS, USERS, rights, users_conf
from dopd.bus.routing import matches
from dopd_planner.history import LOG
from dopd_proto.subjects import SUBJECTS
from tests.secured import NATS


def test_the_shipped_file_is_the_one_that_the_subjects_make() -> None:
    assert (NATS / "users.conf").read_text() == users_conf(), "python -m dopd.bus.permissions > deploy/nats/users.conf"


def test_every_side_of_every_subject_is_a_user() -> None:
    named = {KNOWN_AS.get(role, role) for each in SUBJECTS for role in f"{each.sender}, {each.receiver}".split(", ")}
    assert named == set(USERS)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.template)
def test_senders_alone_may_send_and_receivers_alone_may_hear(subject: permissions.Subject) -> None:
    pattern = subject.at().name
    sends = {user for user in USERS if any(matches(own, pattern) for own in rights(user).publish)}
    hears = {user for user in USERS if any(matches(own, pattern) for own in rights(user).subscribe)}
    assert sends == {KNOWN_AS.get(role, role) for role in subject.sender.split(", ")}
    assert hears == {KNOWN_AS.get(role, role) for role in subject.receiver.split(", ")}


def test_whoever_is_asked_may_answer_and_nobody_else_writes_to_an_inbox() -> None:
    for user in USERS:
        answers = {f"_INBOX.{user}.>"}
        for each in ANSWERED:
            if user in {KNOWN_AS.get(role, role) for role in each.receiver.split(", ")}:
                answers |= {f"_INBOX.{KNOWN_AS.get(role, role)}.>" for role in each.sender.split(", ")}
        assert {own for own in rights(user).publish if own.startswith("_INBOX")} == answers
        assert [own for own in rights(user).subscribe if own.startswith("_INBOX")] == [f"_INBOX.{user}.>"]


def test_the_ledger_is_the_planners_alone() -> None:
    kept = ("$", "dopd.ledger.")
    for user in USERS:
        touched = {own for own in rights(user).publish if own.startswith(kept) and own != "$SRV.>"}
        assert bool(touched) == (user == "planner"), user
    assert (LOG,) == LOGS
