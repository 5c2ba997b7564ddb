"""What a comparison comes to, as one JSON file. Consumes its parts; writes and reads `Comparison`.

The file is a function of what was asked for: neither the number of processes nor any time of day is in it.
"""

from pathlib import Path
from typing import Any

import msgspec

from dopd.errors import LoadError
from dopd_loadgen.compare.model import Row
from dopd_loadgen.model import QueueSample, RoleCount
from dopd_loadgen.report.files import write_whole

FORMAT = 1


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `traces` and `profiles` by the name they have in rows; `rates` empty: chosen per ground.

    Lists are in the order of the command line, which is that of every table. `reference` is the policy that differences
    are taken to. `targets` are the attainments whose largest rate is searched, none without a search.
    """

    traces: dict[str, dict[str, Any]]
    profiles: dict[str, int]
    policies: list[str]
    reference: str
    workers: int
    rates: list[float]
    seeds: list[int]
    tuning_seed: int
    tune_rate: float | None
    duration_s: float
    warmup_s: float
    cooldown_s: float
    timeout_s: float
    slo_ttft_s: float
    slo_tpot_s: float
    targets: list[float] = []
    tolerance: float = 0.03
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    format: int = FORMAT


class LoadRow(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule, the same for all policies: the requests of its measured window, rates per second of that.

    `clipped` counts lengths of the whole schedule.
    """

    trace: str
    profile: str
    rate_scale: float
    seed: int
    requests: int
    span_s: float
    offered_rps: float
    input_tps: float
    output_tps: float
    clipped: dict[str, int] = {}


class BoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """What no policy can pass on one schedule, and in words why."""

    trace: str
    profile: str
    rate_scale: float
    seed: int
    goodput_rps: float
    goodput_tps: float
    attainment: float
    why: str = ""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A policy as it took part on one trace and profile. `tune_rate` is that of the load it was tuned on."""

    policy: str
    trace: str
    profile: str
    prefill: int
    decode: int
    tune_rate: float
    note: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The largest rate at which one policy attained `target`, for one seed.

    `kind`: `found`; `above`: still attained at the largest rate that was tried; `below`: not even at the smallest, then
    `rate_scale` and goodput are 0. `probed` is every rate that was run and its attainment; `monotone` says whether
    attainment was never met above a rate at which it was missed.
    """

    policy: str
    trace: str
    profile: str
    seed: int
    target: float
    rate_scale: float
    kind: str
    goodput_rps: float
    goodput_rps_per_gpu: float
    monotone: bool
    probed: list[tuple[float, float]]


class Curve(msgspec.Struct, frozen=True):
    """Points of a cumulative distribution: a share of all requests had the value or less."""

    values_s: list[float]
    shares: list[float]


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What the pictures of one run need. A bin is (start_s, end_s, requests due, of those good)."""

    policy: str
    trace: str
    profile: str
    rate_scale: float
    seed: int
    span_s: float
    ttft: Curve
    tpot: Curve
    bins: list[tuple[float, float, int, int]]
    roles: list[RoleCount]
    queues: list[QueueSample]


class Comparison(msgspec.Struct, kw_only=True):
    """The file. `scouted` has, per trace and profile, the attainments by which rates and tuning rate were chosen."""

    config: Wanted
    rows: list[Row]
    prepared: list[Prepared] = []
    loads: list[LoadRow] = []
    bounds: list[BoundRow] = []
    goodput: list[Found] = []
    details: list[Detail] = []
    scouted: list[dict[str, Any]] = []
    interrupted: bool = False


def write(comparison: Comparison, path: Path) -> None:
    """Raises LoadError when the file cannot be written."""
    write_whole(path, encoded(comparison))


def encoded(comparison: Comparison) -> bytes:
    """The file's content; the same comparison gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(comparison, order="deterministic"), indent=1) + b"\n"


def read(path: Path) -> Comparison:
    """Raises LoadError for a file that cannot be read or is no comparison of this format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(str(path), f"cannot be read: {error.strerror or error}") from error
    try:
        found = msgspec.json.decode(data, type=Comparison)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LoadError(str(path), f"is no comparison: {error}") from error
    if found.config.format != FORMAT:
        raise LoadError(str(path), f"is of format {found.config.format}, this reads {FORMAT}: made by another version")
    return found
