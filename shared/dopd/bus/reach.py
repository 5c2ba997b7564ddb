"""How a broker is reached: as which user, with which inbox, and over TLS with which CA.

Consumes `cluster.nats_url` and `cluster.nats_ca_file`; produces options for the NATS library.
"""

import logging
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from dopd.bus.common import shown
from dopd.errors import ConfigError

INBOX = "_INBOX"
_USER = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Reach:
    """`urls` without user and password. Without a password there is no user: what stands before the `@` is a token."""

    urls: tuple[str, ...]
    user: str
    password: str | None
    token: str
    tls: ssl.SSLContext | None

    @property
    def inbox(self) -> str:
        """What inboxes begin with: brokers with users let each hear its own alone."""
        return f"{INBOX}.{self.user}" if self.user else INBOX

    @property
    def who(self) -> str:
        """Us, in words."""
        return f"the user {self.user!r}" if self.user else "whoever brings no user"

    def options(self) -> dict[str, Any]:
        """For `Client.connect`. The user goes beside the URLs, so that brokers which it hears of later get it, too."""
        known: dict[str, Any] = {"servers": list(self.urls), "inbox_prefix": self.inbox}
        if self.user:
            known |= {"user": self.user, "password": self.password}
        elif self.token:
            known["token"] = self.token
        return known if self.tls is None else {**known, "tls": self.tls}


def reach(url: str, ca_file: str = "") -> Reach:
    """`url`: one, or the brokers of a cluster with commas between, the first with the user.

    Raises ConfigError for what is no URL, a user that cannot stand in a subject, or a CA file that cannot be used.
    """
    parts = [_split(each.strip(), url) for each in url.split(",")]
    user, password = unquote(parts[0].username or ""), parts[0].password
    if password is not None and not _USER.fullmatch(user):
        raise ConfigError("config", "cluster.nats_url", "a user's name has letters, digits, _, - and dots between")
    return Reach(
        urls=tuple(f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in parts),
        user="" if password is None else user,
        password=None if password is None else unquote(password),
        token=user if password is None else "",
        tls=_context(ca_file) if ca_file or parts[0].scheme == "tls" else None,
    )


def refusal(error: Exception, to: Reach) -> str:
    """Why it is of no use to try again, and what to do; "" where it may be of use. The library has most of it as
    texts alone."""
    said = str(error).lower()
    if "secure connection required" in said:
        return "it offers no TLS, and cluster.nats_ca_file or a tls:// address asks for it; start it with tls.conf"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not verify ({error.verify_message}); cluster.nats_ca_file is to name its CA"
    if "authorization violation" in said:
        return f"it does not let in {to.who}{' with this password' if to.user else ''}; mend cluster.nats_url"
    return ""


def not_allowed(error: Exception) -> tuple[str, str]:
    """What the broker's permissions do not allow: "publish" or "subscription", and the subject in lower case."""
    found = re.search(r'permissions violation for (publish|subscription) to "(.*?)"', str(error).lower())
    return (found[1], found[2]) if found else ("", "")


def _split(text: str, whole: str) -> SplitResult:
    try:
        part = urlsplit(text if "://" in text else f"nats://{text}")
        if part.scheme not in ("nats", "tls") or not part.hostname or part.port == 0:
            raise ValueError("nats://USER:PASSWORD@HOST:PORT is expected")
    except ValueError as error:
        raise ConfigError("config", "cluster.nats_url", f"{shown(whole)!r} is no address ({error})") from None
    return part


def _worth_telling(record: logging.LogRecord) -> bool:
    """The loop says this each time that the NATS library closes a connection with TLS."""
    return "eof_received() has no effect" not in record.getMessage()


def _context(ca_file: str) -> ssl.SSLContext:
    """Certificates must verify against this CA, or against the system's where none is named."""
    logging.getLogger("asyncio").addFilter(_worth_telling)
    if not ca_file:
        return ssl.create_default_context()
    try:
        text = Path(ca_file).read_text(encoding="ascii")
        # An empty text would mean the system's CAs.
        return ssl.create_default_context(cadata=text.strip() or "nothing")
    except (ValueError, ssl.SSLError):
        why = "has no certificate in PEM form"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    raise ConfigError(ca_file, "cluster.nats_ca_file", f"{why}; name the CA's certificate (deploy/nats/dev-ca.sh)")
