"""A trace file's text, plain or gzip, line by line. Consumes a path; produces lines, or a LoadError that says what is
wrong with the file.
"""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

import msgspec

from dopd.errors import LoadError

LINE_LIMIT = 16 << 20
"""Characters. A longer line is no row of a trace, and binary files may have no line end at all."""
T = TypeVar("T")
_GZIP = b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, unpacked when it begins as gzip does. Whatever is wrong with the bytes is a LoadError."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            unpacked = gzip.GzipFile(fileobj=raw) if packed else raw
            with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as text:
                yield text
    except EOFError as error:
        raise LoadError(str(path), "the gzip data ends too early: the file was cut off; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise LoadError(str(path), f"the gzip data is damaged ({error}); fetch the file again") from error
    except UnicodeDecodeError as error:
        raise LoadError(str(path), f"not a text file: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise LoadError(str(path), f"cannot be read: {error.strerror or error}") from error


def lines(path: Path) -> Iterator[str]:
    """The file's lines without their ends. Raises LoadError."""
    with opened(path) as text:
        number = 0
        while line := text.readline(LINE_LIMIT + 1):
            number += 1
            if len(line) > LINE_LIMIT:
                raise LoadError(f"{path}, row {number}", f"longer than {LINE_LIMIT} characters: not a trace")
            yield line.rstrip("\r\n")


def first_line(path: Path) -> str:
    """What tells the format. Raises LoadError for an empty file."""
    with opened(path) as text:
        # A JSON file of one line may be gigabytes long.
        first = text.readline(1 << 16)
    if not first.strip():
        raise LoadError(str(path), "the file is empty" if not first else "the first row is empty")
    return first


def decoded(where: str, text: str | msgspec.Raw, kind: type[T], reason: str) -> T:
    """JSON of one kind. Raises LoadError with the reason, also for nesting that exhausts the stack."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LoadError(where, f"{reason}: {error}") from error


def sha256(path: Path) -> str:
    """Of the file as it is stored. Raises LoadError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoadError(str(path), f"cannot be read: {error.strerror or error}") from error
