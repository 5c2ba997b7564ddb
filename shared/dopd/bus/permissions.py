"""Who may say and hear what on a broker with users: the permissions of `deploy/nats/users.conf`.

Consumes SUBJECTS, which name the sender and the receiver of each, and what the ledger asks of JetStream. Produces the
`Rights` of each user and the file: `python -m dopd.bus.permissions > deploy/nats/users.conf`.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dopd.bus.reach import INBOX
from dopd.ledger import jetstream
from dopd_proto import subjects
from dopd_proto.subjects import SUBJECTS, Subject

USERS = {
    "gateway": "takes requests of clients, has them computed by workers, reports what came and went",
    "worker": "prefill and decode workers, with the emulated engine's side of its KV store",
    "planner": "the ratio-planner: alone gives roles, alone has the ledger",
    "forecaster": "counts what gateways report, says what it expects",
    "kv-store": "the emulated engines' KV store",
    "client": "the public API: may ask gateways, and hear answers",
    "operator": "`dopd roles`, `decisions`, `explain` and `top`",
}
"""Each user of the broker, and who it is."""

KNOWN_AS = {"person": "operator", "emulated engine": "worker", "emulated KV store": "kv-store"}
"""The names that SUBJECTS gives to users that are called otherwise here."""

ANSWERED: tuple[Subject[Any], ...] = (
    subjects.GENERATE, subjects.CHAT, subjects.MODELS, subjects.PREFILL_WORK, subjects.DECODE_WORK, subjects.RESEND,
    subjects.ROLES, subjects.DECISIONS, subjects.SIM_STORE,
)  # fmt: skip
"""What is a question: who receives it writes to the inbox of who sends it."""

LOGS = ("decisions",)
DISCOVERY = "$SRV.>"


@dataclass(frozen=True, slots=True)
class Rights:
    """Patterns of subjects. What matches none of them is refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def rights(user: str) -> Rights:
    """What a user may do: its side of each subject, its own inbox, and the inboxes of those whom it answers."""
    publish = [subject.at().name for subject in SUBJECTS if user in _users(subject.sender)]
    subscribe = [subject.at().name for subject in SUBJECTS if user in _users(subject.receiver)]
    if user == "client":
        publish.append(DISCOVERY)
    if user == "gateway":
        subscribe.append(DISCOVERY)
    if user == "planner":
        publish += jetstream.asked_of_the_broker(LOGS)
    asked_by = {asker for subject in ANSWERED if user in _users(subject.receiver) for asker in _users(subject.sender)}
    # Its own inbox, too: the bus sends itself marks, which tell that the broker has seen all that was sent before.
    publish += [inbox_of(other) for other in sorted(asked_by | {user})]
    return Rights(tuple(publish), (*subscribe, inbox_of(user)))


def inbox_of(user: str) -> str:
    """Where a user gets answers."""
    return f"{INBOX}.{user}.>"


def password_variable(user: str) -> str:
    """The environment variable of the broker with the user's password."""
    return f"DOPD_NATS_{user.upper().replace('-', '_')}_PASSWORD"


def users_conf() -> str:
    """The text of the file."""
    blocks = "\n".join(_block(user, about) for user, about in USERS.items())
    return f"""\
# Who may publish and subscribe what. Made by `python -m dopd.bus.permissions`; what a user lacks here is refused.
#
# Passwords come from the broker's environment; it does not start while one is missing. deploy/nats/passwords.sh makes
# them. Services name theirs in their URL: DOPD__CLUSTER__NATS_URL=nats://gateway:PASSWORD@nats:4222.
#
# Answers come on inboxes, which begin with the user's name, so that no user hears another's. DOPD's own processes see
# to that; other NATS clients are to be told: inbox_prefix "_INBOX.client". Clients that must not hear one another get
# users of their own, called client.NAME, in the place of `client` (docs/security.md).
authorization {{
  users = [
{blocks}
  ]
}}
"""


def _users(roles: str) -> set[str]:
    return {KNOWN_AS.get(role, role) for role in roles.split(", ")}


def _block(user: str, about: str) -> str:
    may = rights(user)
    return f"""\
    # {about}
    {{
      user: "{user}"
      password: ${password_variable(user)}
      permissions: {{
        publish: {_listed(may.publish)}
        subscribe: {_listed(may.subscribe)}
      }}
    }}"""


def _listed(patterns: Iterable[str]) -> str:
    lines = "".join(f'          "{pattern}"\n' for pattern in patterns)
    return f"[\n{lines}        ]"


if __name__ == "__main__":
    sys.stdout.write(users_conf())
