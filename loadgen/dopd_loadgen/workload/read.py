"""Trace files as requests: one small reader per format, and `read_trace`, which finds the format from the content.

Consumes a file (CSV or JSONL, plain or gzip); produces a `Trace`. A row that cannot be a request is a LoadError with
file and row (line number, the header is row 1); only rows that ask for no tokens are left out, and counted.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import source
from dopd_loadgen.workload.lengths import TOKENS_LIMIT

Format = Literal["azure", "burstgpt", "mooncake", "ragpulse", "simple", "servegen", "sharegpt"]
SECONDS_LIMIT = 10 * 366 * 86400.0
"""Ten years; a later arrival is a unit taken for another."""
MOONCAKE_BLOCK_TOKENS = 512

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
SIMPLE = ("at_s", "isl_tokens", "osl_tokens")
MOONCAKE = ("timestamp", "input_length", "output_length", "hash_ids")
SERVEGEN = ("model", "client", "start_s", "rate", "cv", "pattern")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trace:
    """A file's requests in order of time, how many rows were left out, by reason, and how many values were clipped.

    `whole`: it was read to its end.
    """

    format: Format
    planned: list[Planned]
    left_out: dict[str, int] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    whole: bool = True


def format_of(path: Path) -> Format:
    """The format by the first row. Raises LoadError that names the columns found and those wanted."""
    first = source.first_line(path)
    if first.lstrip().startswith("["):
        return "sharegpt"
    if first.lstrip().startswith("{"):
        row = _object(f"{path}, row 1", first)
        if "hash_ids" in row:
            return "ragpulse" if isinstance(row["hash_ids"], dict) else "mooncake"
        known: dict[Format, tuple[str, ...]] = {"simple": SIMPLE, "mooncake": MOONCAKE}
        found = set(row)
    else:
        known = {"azure": AZURE, "burstgpt": BURSTGPT, "simple": SIMPLE, "servegen": SERVEGEN}
        found = {name.strip() for name in first.split(",")}
    for name, columns in known.items():
        if found.issuperset(columns):
            return name
    wanted = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in known.items())
    raise LoadError(f"{path}, row 1", f"no known trace: has {_names(found)}; wanted one of {wanted}")


def read_trace(path: Path, format: Format | None = None, sort: bool = False, end_s: float = math.inf) -> Trace:
    """The requests of a trace of arrivals and lengths (every format but `servegen` and `sharegpt`).

    Reading ends at the first row at or after `end_s`, so that a week's file can give its first hour. Rows out of
    order of time are a LoadError, unless `sort`.
    """
    name = format or format_of(path)
    if name not in _READERS:
        raise LoadError(str(path), f"{name} has no arrivals of single requests")
    left_out: Counter[str] = Counter()
    planned: list[Planned] = []
    last_s, row, whole = -math.inf, 1, True
    for row, one in _READERS[name](path):
        if one.at_s < last_s and not sort:
            reason = f"at {one.at_s:.6g} s, before the row above it at {last_s:.6g} s; --sort sorts the rows by time"
            raise LoadError(f"{path}, row {row}", reason)
        if abs(one.at_s) > SECONDS_LIMIT:
            raise LoadError(f"{path}, row {row}", f"{one.at_s:.3g} s from the first row, more than ten years")
        last_s = one.at_s
        if last_s >= end_s and not sort:
            whole = False
            break
        if one.isl_tokens == 0 or one.osl_tokens == 0:
            left_out["no input tokens" if one.isl_tokens == 0 else "no output tokens"] += 1
        else:
            planned.append(one)
    if not planned:
        raise LoadError(f"{path}, row {row}", "no request up to here: nothing to plan")
    if not sort:
        return Trace(name, planned, dict(left_out), whole=whole)
    planned.sort(key=lambda one: one.at_s)
    # Clocks of day are told from the first row, which need not be the earliest.
    zero_s = min(0.0, planned[0].at_s)
    kept = [replace(one, at_s=one.at_s - zero_s) for one in planned if one.at_s - zero_s < end_s]
    return Trace(name, kept, dict(left_out), whole=len(kept) == len(planned))


# ------------------------------------------------------------------------------------------------------------- formats


def _azure(path: Path) -> Iterator[tuple[int, Planned]]:
    """Azure LLM inference traces 2023 (seven digits, no zone) and 2024 (maybe a zone)."""
    zero: datetime | None = None
    for number, row in csv_rows(path, AZURE):
        where = f"{path}, row {number}"
        at = _clock(where, row["TIMESTAMP"])
        zero = zero or at
        isl, osl = (tokens(where, name, row[name]) for name in AZURE[1:])
        yield number, Planned(number, (at - zero).total_seconds(), isl, osl)


def _burstgpt(path: Path) -> Iterator[tuple[int, Planned]]:
    """BurstGPT: seconds; a failed request has no response tokens."""
    zero_s: float | None = None
    for number, row in csv_rows(path, BURSTGPT):
        where = f"{path}, row {number}"
        at_s = seconds(where, "Timestamp", row["Timestamp"])
        zero_s = at_s if zero_s is None else zero_s
        isl, osl = (tokens(where, name, row[name]) for name in ("Request tokens", "Response tokens"))
        yield number, Planned(number, at_s - zero_s, isl, osl)


def _mooncake(path: Path) -> Iterator[tuple[int, Planned]]:
    """Mooncake: milliseconds, and the identity of every block of 512 prompt tokens (the last may be part of one)."""
    for number, row in json_rows(path, MOONCAKE):
        where = f"{path}, row {number}"
        at_s = seconds(where, "timestamp", row["timestamp"], per_s=1000)
        isl, osl = (tokens(where, name, row[name]) for name in MOONCAKE[1:3])
        ids = row["hash_ids"]
        if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 1 << 62 for one in ids):
            raise LoadError(where, "hash_ids is not a list of whole numbers in [0, 2**62)")
        if len(ids) > -(-isl // MOONCAKE_BLOCK_TOKENS):
            raise LoadError(where, f"{len(ids)} hash_ids of {MOONCAKE_BLOCK_TOKENS} tokens for {isl} tokens")
        yield number, Planned(number, at_s, isl, osl, tuple(ids), MOONCAKE_BLOCK_TOKENS)


def _ragpulse(path: Path) -> Iterator[tuple[int, Planned]]:
    """RAGPulse: seconds as a string. Its hash_ids name passages of unknown length, so they give no blocks."""
    for number, row in json_rows(path, MOONCAKE[:3]):
        where = f"{path}, row {number}"
        isl, osl = (tokens(where, name, row[name]) for name in MOONCAKE[1:3])
        yield number, Planned(number, seconds(where, "timestamp", row["timestamp"]), isl, osl)


def _simple(path: Path) -> Iterator[tuple[int, Planned]]:
    """Our own: at_s, isl_tokens, osl_tokens, as CSV or JSONL."""
    is_json = source.first_line(path).lstrip().startswith("{")
    for number, row in (json_rows if is_json else csv_rows)(path, SIMPLE):
        where = f"{path}, row {number}"
        isl, osl = (tokens(where, name, row[name]) for name in SIMPLE[1:])
        yield number, Planned(number, seconds(where, "at_s", row["at_s"]), isl, osl)


_READERS: dict[Format, Callable[[Path], Iterator[tuple[int, Planned]]]] = {
    "azure": _azure,
    "burstgpt": _burstgpt,
    "mooncake": _mooncake,
    "ragpulse": _ragpulse,
    "simple": _simple,
}

# ---------------------------------------------------------------------------------------------------- rows and numbers


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Row numbers and rows of a CSV file that has these columns. Raises LoadError."""
    reader = csv.reader(source.lines(path))
    try:
        header = [name.strip() for name in next(reader, [])]
        _wanted(f"{path}, row 1", set(header), columns)
        for fields in reader:
            where = f"{path}, row {reader.line_num}"
            if len(fields) != len(header):
                reason = f"{len(fields)} fields where the header has {len(header)}" if fields else "the row is empty"
                raise LoadError(where, reason)
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise LoadError(f"{path}, row {reader.line_num}", f"not CSV: {error}") from error


def json_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """Row numbers and objects of a JSONL file, each with these keys. Raises LoadError."""
    for number, line in enumerate(source.lines(path), start=1):
        where = f"{path}, row {number}"
        row = _object(where, line)
        _wanted(where, set(row), columns)
        yield number, row


def tokens(where: str, name: str, value: Any) -> int:
    """A count of tokens in [0, TOKENS_LIMIT], from a CSV field or a JSON number. Raises LoadError."""
    number = value
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,30}\s*", value):
        number = int(value)
    if type(number) is not int:
        raise LoadError(where, f"{name} is {_shown(value)}, not a whole number")
    if not 0 <= number <= TOKENS_LIMIT:
        raise LoadError(
            where, f"{name} is {_shown(number)}, " + ("negative" if number < 0 else f"above {TOKENS_LIMIT}")
        )
    return number


def seconds(where: str, name: str, value: Any, per_s: int = 1) -> float:
    """A time in [0, SECONDS_LIMIT] seconds; the column has `per_s` to a second. Raises LoadError."""
    number = real(where, name, value) / per_s
    if not 0 <= number <= SECONDS_LIMIT:
        raise LoadError(where, f"{name} is {_shown(value)}, " + ("negative" if number < 0 else "beyond ten years"))
    return number


def real(where: str, name: str, value: Any) -> float:
    """A finite number. Raises LoadError."""
    try:
        if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise LoadError(where, f"{name} is {_shown(value)}, not a number") from error
    if not math.isfinite(number):
        raise LoadError(where, f"{name} is {_shown(value)}, not finite")
    return number


def _shown(value: Any) -> str:
    """As in the file, but not all of a field that is pages long; Python refuses to write out a number that long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of over 30 digits"
    return text if len(text) <= 40 else f"{text[:40]}…"


def _clock(where: str, value: str) -> datetime:
    try:
        at = datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise LoadError(where, f"TIMESTAMP is {_shown(value)}, not a date and time") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _object(where: str, line: str) -> Row:
    if not line.strip():
        raise LoadError(where, "the row is empty")
    return source.decoded(where, line, Row, "not a JSON object")


def _wanted(where: str, found: set[str], columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in found]
    if missing:
        raise LoadError(where, f"lacks {', '.join(missing)}: has {_names(found)}; wanted {', '.join(columns)}")


def _names(found: set[str]) -> str:
    return ", ".join(name[:40] for name in sorted(found)[:12]) or "no columns"
