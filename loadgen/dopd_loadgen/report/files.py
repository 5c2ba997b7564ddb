"""Files that are there whole or not at all. Consumes a path; produces a stream that becomes that file in the end."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dopd.errors import LoadError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file beside `path`, which takes its place at the end; on any error nothing is left.

    Raises LoadError with the path where the disk says no.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise LoadError(str(path), f"cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be what is wrong; the error above says so
            part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """`data` as the content of `path`, whole or not at all. Raises LoadError."""
    with whole_file(path) as stream:
        stream.write(data)
