"""Who may use the HTTP API: names, and hashes of their keys.

Consumes the file of `gateway.api_keys_file` and the variable DOPD_API_KEYS; produces the name that a key belongs to,
and the limit of a name. The file is read again when it changes. Keys themselves are never kept, said or logged.

A key of `new_key` has 256 random bits. Whoever has the file cannot find it by trying, however fast the hash is: a slow
one (scrypt) would only cost time with each request. Nobody's own words are hashed here.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dopd.errors import ConfigError
from dopd.obs.log import get_logger
from dopd_gateway.rate import Limit

VARIABLE = "DOPD_API_KEYS"
ALGORITHM = "sha256"
LOOK_EVERY_S = 1.0
"""How often the file may be looked at, and so the longest that a removed key still works."""
MOST_KEYS = 1000
"""Each request's key is held against all."""
LEAST_CHARACTERS, MOST_CHARACTERS = 20, 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY = re.compile(rf"[\x21-\x7e]{{{LEAST_CHARACTERS},{MOST_CHARACTERS}}}")
_SALT = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key. Several may have one name, as when a key is replaced."""

    name: str
    salt: str
    digest: str
    limit: Limit | None = None

    def fits(self, key: str) -> bool:
        """Whether it is this key, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(_digest(self.salt, key), self.digest)


class Keys:
    """The keys now. Without a file and without the variable there are none, and everybody may come."""

    def __init__(self, file: str, environment: Mapping[str, str]) -> None:
        """Raises ConfigError, which names a line and never what is in it."""
        self._file = Path(file) if file else None
        self._given = _from_variable(environment.get(VARIABLE, ""))
        self._entries: tuple[Entry, ...] = ()
        self._limits: dict[str, Limit] = {}
        self._look_at_s = float("-inf")
        self._stamp = _stamp(self._file)
        self._take(() if self._file is None else read_keys(self._file))

    @property
    def wanted(self) -> bool:
        """Whether a key is asked for. A file without keys lets nobody in."""
        return self._file is not None or bool(self._given)

    def name_of(self, key: str, now_s: float) -> str | None:
        """The owner of a key, None where it is nobody's. `now_s` is any clock's."""
        self._look(now_s)
        if len(key) > MOST_CHARACTERS:
            return None
        found = [entry.name for entry in self._entries if entry.fits(key)]  # all of them, also after a hit
        return found[0] if found else None

    def limit_of(self, name: str) -> Limit | None:
        """The limit of its own that a name has."""
        return self._limits.get(name)

    def _look(self, now_s: float) -> None:
        """Read the file again if it is another one. One that cannot be read changes nothing."""
        if self._file is None or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_EVERY_S
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(self._file))
        except ConfigError as error:
            get_logger().error("api_keys_not_read", detail=str(error), keys=len(self._entries))
        else:
            get_logger().info("api_keys_read", keys=len(self._entries))

    def _take(self, entries: Iterable[Entry]) -> None:
        self._entries = (*self._given, *entries)
        self._limits = {entry.name: entry.limit for entry in self._entries if entry.limit is not None}


def new_key() -> str:
    """A key that nobody guesses: 256 random bits in 43 letters, digits, - and _."""
    return f"dopd-{secrets.token_urlsafe(32)}"


def line_of(name: str, key: str, limit: Limit | None = None) -> str:
    """The file's line for a key. Raises ValueError for a name that is none."""
    if not _NAME.fullmatch(name):
        raise ValueError("a name has at most 64 letters, digits, dots, _ and -")
    salt = secrets.token_hex(16)
    own = "" if limit is None else f" requests_per_s={limit.per_s:g} burst={limit.burst}"
    return f"{name} {ALGORITHM} {salt} {_digest(salt, key)}{own}"


def read_keys(file: Path) -> tuple[Entry, ...]:
    """The entries of a file: `NAME sha256 SALT HASH [requests_per_s=N burst=N]` in each line, or a comment after #.

    Raises ConfigError.
    """
    where, key = str(file), "gateway.api_keys_file"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(where, key, f"cannot be read ({error.strerror}); `dopd key new NAME` makes a line") from None
    except UnicodeDecodeError:
        raise ConfigError(where, key, "is no text in UTF-8; `dopd key new NAME` makes a line") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        entry = _entry(words) if words else None
        if words and entry is None:
            fix = "NAME sha256 SALT HASH [requests_per_s=N burst=N] is expected; `dopd key new NAME` makes a line"
            raise ConfigError(f"{where} line {number}", key, fix)
        found += [entry] if entry is not None else []
    if len(found) > MOST_KEYS:
        raise ConfigError(where, key, f"has {len(found)} keys; {MOST_KEYS} are possible")
    return tuple(found)


def _entry(words: list[str]) -> Entry | None:
    name, algorithm, salt, digest, *own = [*words, "", "", "", ""][: max(4, len(words))]
    known = algorithm == ALGORITHM and _NAME.fullmatch(name) and _SALT.fullmatch(salt) and _HASH.fullmatch(digest)
    numbers = dict(word.partition("=")[::2] for word in own)
    if not known or len(numbers) < len(own) or not all(_NUMBER.fullmatch(value) for value in numbers.values()):
        return None
    if not numbers:
        return Entry(name, salt, digest)
    per_s, burst = float(numbers.pop("requests_per_s", "0")), numbers.pop("burst", "1")
    if numbers or not burst.isdecimal() or int(burst) < 1:
        return None
    return Entry(name, salt, digest, Limit(per_s, int(burst)))


def _from_variable(text: str) -> tuple[Entry, ...]:
    """`NAME:KEY`, more of them after commas. Raises ConfigError."""
    found = []
    for number, part in enumerate((part.strip() for part in text.split(",") if part.strip()), 1):
        name, _, key = part.partition(":")
        if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
            fix = f"NAME:KEY is expected, a key of at least {LEAST_CHARACTERS} characters (`dopd key new NAME`)"
            raise ConfigError("environment", f"{VARIABLE}, entry {number}", fix)
        salt = secrets.token_hex(16)
        found.append(Entry(name, salt, _digest(salt, key)))
    return tuple(found)


def _digest(salt: str, key: str) -> str:
    return hashlib.sha256(f"{salt}{key}".encode(errors="backslashreplace")).hexdigest()


def _stamp(file: Path | None) -> tuple[int, ...] | None:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)
