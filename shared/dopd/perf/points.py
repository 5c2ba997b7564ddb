"""Measured step times of one engine: reads and writes profile files, and refuses what cannot be a measurement.

Consumes a CSV whose first lines are `# key = value` (TOML values) and whose columns carry their units; produces
`PointsFile`. Errors name file, row and reason. Formats: docs/profiles.md.
"""

import csv
import difflib
import gzip
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, cast

from dopd.errors import ConfigError
from dopd.perf.sanity import check_growth, check_step

Phase = Literal["prefill", "decode", "mixed"]
Meta = Mapping[str, str | int | float | bool]

META_TEXT = ("name", "source", "engine", "model", "gpu")
META_COUNTS = (
    "gpus",
    "kv_token_bytes",
    "kv_total_tokens",
    "max_running",
    "max_step_tokens",
    "max_model_len",
    "block_tokens",
    "chunk_tokens",
    "large_batch_requests",
)
META_NUMBERS = ("transfer_fixed_s", "transfer_bytes_per_s", "start_s", "arrival_s")
META_NEEDED = ("name", "source", "gpus", "kv_token_bytes", "kv_total_tokens")


@dataclass(frozen=True, slots=True)
class Point:
    """One measured engine step, or the median of several like it.

    `prompt_tokens` are computed in the step over all its prompts, `prompt_square_tokens2` is the sum of b^2 - a^2 over
    the chunks from a to b. `batch_requests` are prompts in a prefill step, running decodes else; `context_tokens` is
    the live context of the decodes together. `row` is the line in the file, 0 for a point that came from none.
    """

    phase: Phase
    prompt_tokens: float
    prompt_square_tokens2: float
    batch_requests: float
    context_tokens: float
    latency_s: float
    row: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class PointsFile:
    """Points of one engine with what is known about it; `where` is the file, for errors."""

    meta: Meta
    points: Sequence[Point]
    where: str = field(default="points", compare=False)

    def of(self, phase: Phase) -> list[Point]:
        """The points of one phase."""
        return [point for point in self.points if point.phase == phase]


COLUMNS = tuple(field.name for field in fields(Point) if field.name != "row")
_UNITS = {"latency_ms": 1e-3}  # written another way: the column of ours is in seconds
_PLAIN = {name.rpartition("_")[0]: name for name in COLUMNS if "_" in name}


def read_points(path: Path | str) -> PointsFile:
    """A profile file. Raises ConfigError with file, row and reason for whatever is wrong in it."""
    lines = _lines(Path(path))
    head = sum(1 for _ in _head(lines))
    meta = _meta(str(path), lines[:head])
    rows = csv.DictReader(lines[head:])
    names = _columns(str(path), rows.fieldnames or ())
    points = [_point(f"{path}:{number}", row, names, number) for number, row in enumerate(rows, head + 2)]
    return checked(PointsFile(meta, tuple(points), str(path)))


def write_points(path: Path | str, file: PointsFile) -> None:
    """Write what `read_points` reads back as equal. Raises ConfigError as reading it would."""
    checked(file)
    with Path(path).open("w", newline="") as out:
        out.writelines(f"# {key} = {_toml(value)}\n" for key, value in file.meta.items())
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows([_number(getattr(point, name)) for name in COLUMNS] for point in file.points)


def checked(file: PointsFile) -> PointsFile:
    """The file itself. Raises ConfigError when its head, a row or the rows together cannot be true."""
    check_meta(file.where, file.meta)
    for point in file.points:
        check_step(f"{file.where}:{point.row}" if point.row else file.where, point)
    for phase in ("prefill", "decode"):
        check_growth(file.where, phase, file.of(phase))
    return file


def check_meta(where: str, meta: Meta) -> None:
    """Raises ConfigError unless all needed keys are there and every known one has the right kind of value."""
    for key in META_NEEDED:
        if key not in meta:
            raise ConfigError(where, key, f"missing in the head; add a line `# {key} = …`")
    for key, value in meta.items():
        if not isinstance(value, str | int | float):
            raise ConfigError(where, key, f"is {value!r}; give a text, a number or a truth")
        known = (*META_TEXT, *META_COUNTS, *META_NUMBERS)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if key in META_TEXT and not (isinstance(value, str) and value):
            raise ConfigError(where, key, f"is {value!r}; give a text in quotes")
        if key in META_COUNTS and not (isinstance(value, int) and number and value > 0):
            raise ConfigError(where, key, f"is {value!r}; give a whole number above 0")
        if key in META_NUMBERS and not (number and cast("float", value) >= 0):
            raise ConfigError(where, key, f"is {value!r}; give a number of at least 0")
        if key not in known and (close := difflib.get_close_matches(key, known, 1, 0.8)):
            raise ConfigError(where, key, f"unknown; did you mean {close[0]!r}?")


# ------------------------------------------------------------------------------------------------------ other tables


def read_table(path: Path | str, meta: Meta, *, gpu: str, model: str, tp: int, dtype: str) -> PointsFile:
    """The rows of one engine in a table of many (columns gpu, model, tp, engine, phase, tokens, batch, context,
    latency_s, …; gzip as it is). There, prefill `tokens` are the batch's and `context` one prompt's length; decode
    `context` is the mean of one request. Raises ConfigError as `read_points`.
    """
    wanted = {"gpu": gpu, "model": model, "tp": str(tp), "dtype": dtype}
    points = []
    for number, row in enumerate(csv.DictReader(_lines(Path(path))), 2):
        if all(row.get(key) == value for key, value in wanted.items()):
            points.append(_table_point(f"{path}:{number}", row, number))
    if not points:
        raise ConfigError(str(path), "rows", f"none of {gpu} {model} {dtype} TP{tp}; see its columns")
    return checked(PointsFile(meta, tuple(points), str(path)))


def _table_point(where: str, row: Mapping[str, str], number: int) -> Point:
    phase, latency_s = _phase(where, row), _float(where, row, "latency_s")
    batch, context = _float(where, row, "batch"), _float(where, row, "context")
    if phase == "decode":
        return Point(phase, 0, 0, batch, batch * context, latency_s, number)
    tokens = _float(where, row, "tokens")
    return Point(phase, tokens, tokens * context, batch, 0, latency_s, number)


# ------------------------------------------------------------------------------------------------------------- reading


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "file", f"cannot be read ({error}); give a CSV file in UTF-8") from error


def _head(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def _meta(path: str, head: Sequence[str]) -> Meta:
    meta: dict[str, str | int | float | bool] = {}
    for number, line in enumerate(head, 1):
        text = line.lstrip("#").strip()
        try:
            meta |= tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}:{number}", "head", f'{text!r} is no `key = value` ("text" in quotes)') from error
    return meta


def _columns(path: str, names: Sequence[str]) -> dict[str, str]:
    """Our column to the file's. Every column must be known by name and unit, and none may be missing."""
    found: dict[str, str] = {}
    for name in names:
        if name in _PLAIN:
            raise ConfigError(path, name, f"a column without unit; call it {_PLAIN[name]}")
        column = "latency_s" if name in _UNITS else name
        if column not in COLUMNS:
            unit = ", or ".join(["latency_s", *_UNITS]) if name.startswith("latency") else ", ".join(COLUMNS)
            raise ConfigError(path, name, f"no column of a profile file; use {unit}")
        if column in found:
            raise ConfigError(path, name, f"the same as column {found[column]}; keep one")
        found[column] = name
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise ConfigError(path, missing[0], "this column is missing")
    return found


def _point(where: str, row: Mapping[str, str], names: Mapping[str, str], number: int) -> Point:
    if None in row or None in row.values():
        raise ConfigError(where, "row", f"has not as many fields as the header ({len(names)})")
    tokens, square, batch, context, latency = (_float(where, row, names[column]) for column in COLUMNS[1:])
    return Point(
        _phase(where, row), tokens, square, batch, context, latency * _UNITS.get(names["latency_s"], 1), number
    )


def _phase(where: str, row: Mapping[str, str]) -> Phase:
    phase = row["phase"]
    if phase not in ("prefill", "decode", "mixed"):
        raise ConfigError(where, "phase", f"is {phase!r}; use prefill, decode or mixed")
    return cast("Phase", phase)


def _float(where: str, row: Mapping[str, str], name: str) -> float:
    try:
        number = float(row[name])
    except (KeyError, ValueError, TypeError):
        raise ConfigError(where, name, f"{row.get(name)!r} is no number") from None
    if not math.isfinite(number) or number < 0:
        raise ConfigError(where, name, f"{number:g} is no measurement; give a number of at least 0")
    return number


# ------------------------------------------------------------------------------------------------------------- writing


def _toml(value: str | int | float | bool) -> str:
    # A JSON text, number or truth is one in TOML, too.
    return json.dumps(value, ensure_ascii=False)


def _number(value: str | float) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value if isinstance(value, str) else repr(value)
