"""A run's result in a folder: `result.json` and `requests.jsonl`. Consumes a `Run` and its summary; reads both back.

`result.json` is what `vllm bench serve` writes, with one key of ours, `dopd`. `load` also takes vLLM's own files.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from dopd.errors import LoadError
from dopd_loadgen.model import Run
from dopd_loadgen.report.bench_json import DETAILED, bench_keys
from dopd_loadgen.report.files import write_whole
from dopd_loadgen.report.metrics import summarise
from dopd_loadgen.report.notes import notes
from dopd_loadgen.report.requests_file import read_requests, write_requests
from dopd_loadgen.report.summary import Settings, Summary

RESULT, REQUESTS = "result.json", "requests.jsonl"
FORMAT = 1
_NUMBERS = re.compile(
    r"duration|completed|failed|num_prompts|(request|output|total_token)_throughput|request_goodput|total_\w+_tokens|"
    r"max_output_tokens_per_s|max_concurrent_requests|(mean|median|std|p[\d.]+)_(ttft|tpot|itl|e2el)_ms"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A result that was read, or has just been made. `keys` are vLLM's; `run` and `summary` there are in ours only.

    A `run` whose requests are not there has no records.
    """

    where: str
    label: str
    keys: Mapping[str, Any]
    run: Run | None = None
    summary: Summary | None = None
    settings: Settings = field(default_factory=Settings)


def store(run: Run, settings: Settings | None = None, where: str = "") -> Stored:
    """A run with all its figures."""
    settings = settings or Settings()
    return Stored(where, run.label, bench_keys(run, settings, detailed=True), run, summarise(run, settings), settings)


def write_result(
    stored: Stored, folder: Path, detailed: bool = False, metadata: Mapping[str, str] | None = None
) -> None:
    """Both files of a run of ours, requests first. `metadata` goes beside vLLM's keys, over none. Raises LoadError."""
    assert stored.run is not None and stored.summary is not None
    if stored.run.records:
        write_requests(stored.run, folder / REQUESTS)
    keys = {key: value for key, value in stored.keys.items() if detailed or key not in DETAILED}
    made = {
        "format": FORMAT,
        "notes": notes(stored.summary),
        "summary": stored.summary,
        "run": msgspec.structs.replace(stored.run, records=[]),
    }
    lists = {key: value for key, value in keys.items() if isinstance(value, list)}
    own = {"dopd": msgspec.to_builtins(made, str_keys=True, enc_hook=str)}
    plain = _plain(dict(metadata or {}) | {key: keys[key] for key in keys if key not in lists} | own | lists)
    write_whole(folder / RESULT, msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")


def load(path: Path, settings: Settings | None = None) -> list[Stored]:
    """The results in a folder or file of ours, or in a file of vLLM's (several, where it was appended to).

    Raises LoadError with the file and what is wrong with it.
    """
    settings = settings or Settings()
    file = path / RESULT if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise LoadError(str(file), f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LoadError(str(file), f"is no text: {error}") from error
    return [_stored(file, keys, settings) for keys in _parsed(file, text)]


def _parsed(file: Path, text: str) -> list[dict[str, Any]]:
    """The objects of a file, one behind the other as `--append-result` leaves them."""
    decoder, at = json.JSONDecoder(), 0
    found: list[dict[str, Any]] = []
    text = text.strip()
    while at < len(text) or not found:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise LoadError(str(file), f"is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise LoadError(str(file), f"holds a {type(value).__name__}, a result is an object")
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def _stored(file: Path, keys: dict[str, Any], settings: Settings) -> Stored:
    for key in ("duration", "completed"):
        if key not in keys:
            raise LoadError(str(file), f"is no result of dopd-loadgen or of vllm bench serve: it has no key {key!r}")
    for key, value in keys.items():
        if _NUMBERS.fullmatch(key) and not _is_number(value) and value is not None:
            raise LoadError(str(file), f"{key} is {value!r:.40}, not a number")
    own = keys.pop("dopd", None)
    if own is None:
        _check_lists(file, keys)
        return Stored(str(file), str(keys.get("label") or file.stem), keys, settings=settings)
    return _own(file, keys, own, settings)


def _own(file: Path, keys: dict[str, Any], own: Any, settings: Settings) -> Stored:
    if not isinstance(own, dict) or own.get("format") != FORMAT:
        raise LoadError(str(file), f"its key 'dopd' is not of format {FORMAT}: made by another version")
    try:
        run = msgspec.convert(own.get("run"), Run)
        summary = msgspec.convert(own.get("summary"), Summary)
    except msgspec.ValidationError as error:
        raise LoadError(str(file), f"its key 'dopd' is damaged: {error}") from error
    requests = file.with_name(REQUESTS)
    if file.name != RESULT or not requests.exists():
        return Stored(str(file), run.label, keys, run, summary, settings)
    run.records = read_requests(requests)
    if len(run.records) != keys.get("num_prompts"):
        raise LoadError(str(requests), f"has {len(run.records)} requests, {file} has {keys.get('num_prompts')}")
    return store(run, settings, str(file))


def _check_lists(file: Path, keys: Mapping[str, Any]) -> None:
    """vLLM's details, if they are there, must be of one length and of numbers."""
    names = ("ttfts", "itls", "output_lens", "errors")
    lists = [keys[name] for name in names if name in keys]
    if any(not isinstance(one, list) or len(one) != len(lists[0]) for one in lists):
        raise LoadError(str(file), f"{', '.join(names)} are not lists of one length")
    gaps = keys.get("itls", [])
    numbers = [*keys.get("ttfts", ()), *keys.get("output_lens", ())]
    if not all(isinstance(one, list) for one in gaps) or not all(map(_is_number, chain(numbers, *gaps))):
        raise LoadError(str(file), "ttfts, itls and output_lens must hold numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """JSON has no infinity: "inf", as vLLM writes its request rate."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
