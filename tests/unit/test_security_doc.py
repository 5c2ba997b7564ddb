"""docs/security.md says what is so: its table is that of the permissions, and each line names tests that exist."""

import re
import subprocess

import pytest

from dopd.bus.permissions import USERS, inbox_of, rights
from dopd_proto.subjects import SUBJECTS
from tests.secured import ROOT

DOCUMENT = (ROOT / "docs/security.md").read_text()


def table() -> str:
    """Each subject's senders and hearers."""
    users = list(USERS)
    inboxes = {inbox_of(user) for user in users}
    ours = [subject.at().name for subject in SUBJECTS]
    more = {name for user in users for name in (*rights(user).publish, *rights(user).subscribe)} - {*ours} - inboxes
    head = f"| subject | {' | '.join(users)} |\n|---|{'---|' * len(users)}\n"
    return head + "".join(
        f"| `{name}` | {' | '.join(_cell(user, name) for user in users)} |\n" for name in (*ours, *sorted(more))
    )


def _cell(user: str, name: str) -> str:
    may = rights(user)
    return " ".join(("S" * (name in may.publish), "H" * (name in may.subscribe))).strip()


def test_the_table_of_users_and_subjects_is_that_of_the_permissions() -> None:
    assert table() in DOCUMENT, f"docs/security.md should have\n{table()}"


def test_every_line_of_what_holds_names_tests_and_all_of_them_exist() -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    rows = re.findall(r"^\| (.+) \| (.+) \|$", DOCUMENT.partition("## What holds")[2], re.MULTILINE)
    rows = [(statement, named) for statement, named in rows if named != "tested by"]
    assert len(rows) > 30
    for statement, named in rows:
        names = re.findall(r"`(test_\w+)`", named)
        assert names, f"no test is named for: {statement}"
        for name in names:
            assert re.search(rf"def {name}\(", tests), f"{name} is no test: {statement}"


def test_the_key_that_dev_ca_makes_goes_neither_into_the_repository_nor_into_an_image() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules.index("deploy/nats/tls") > rules.index("!deploy/nats"), "the last rule that fits counts"
    key = ROOT / "deploy/nats/tls/server.key"
    asked = subprocess.run(
        ["git", "check-ignore", key], cwd=ROOT, capture_output=True, text=True, timeout=10, check=False
    )
    if asked.returncode == 128:
        pytest.skip(f"no checkout: {asked.stderr.strip()}")
    assert asked.returncode == 0
