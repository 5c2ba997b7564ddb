"""GPU profiles: small fitted coefficients with their source. `PROFILES` are the shipped ones, `named` finds any.

Fits and origins: docs/profiles.md (prefill t = c0 + c1*n + c2*n^2, decode step t = c0 + c1*batch + c2*context). A
profile without fits was given as coefficients by its source.
"""

import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dopd.errors import ConfigError
from dopd.perf.sanity import check_speed


@dataclass(frozen=True, slots=True)
class PhaseFit:
    """How well a phase is described: relative errors over the points it was fitted to (mixed steps: predicted)."""

    phase: str
    points: int
    mape_pct: float
    worst_pct: float
    r2: float


@dataclass(frozen=True, slots=True)
class Grid:
    """The most that was measured in one step. Beyond it a profile extrapolates (`model.beyond`)."""

    prompt_tokens: float
    batch_requests: float
    context_tokens: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine (model, and `gpus` GPUs as its tensor parallelism) as numbers, all times in seconds.

    Prefill: fixed, per token, per token squared. Decode step: fixed, per request, per token of live context; from
    `large_batch_requests` on (0: never) the large_… three. KV move: fixed and bytes/s, over an idle link. `start_s` is
    how long a new worker takes until it serves; `LocalCluster.add_worker(cold=True)` waits so long. `arrival_s` is a
    request's way into the engine and out of it: it adds to the first token, and keeps nobody from a step.
    """

    name: str
    source: str
    prefill_fixed_s: float
    prefill_token_s: float
    prefill_token2_s: float
    decode_fixed_s: float
    decode_request_s: float
    decode_context_s: float
    kv_token_bytes: int
    kv_total_tokens: int
    transfer_fixed_s: float = 0.39e-3
    transfer_bytes_per_s: float = 146e9
    max_running: int = 256
    max_step_tokens: int = 8192
    max_model_len: int = 131_072
    block_tokens: int = 16
    chunk_tokens: int = 256
    gpus: int = 1
    start_s: float = 0.0
    arrival_s: float = 0.0
    large_batch_requests: int = 0
    large_fixed_s: float = 0.0
    large_request_s: float = 0.0
    large_context_s: float = 0.0
    fits: tuple[PhaseFit, ...] = ()
    grid: Grid | None = None


def named(name: str) -> Profile:
    """A shipped profile, a coefficient file (.toml) or measured points (.csv), fitted.

    Raises ConfigError: with the list when the name is unknown, with file, row and reason when the file is no good.
    """
    if name in PROFILES:
        return PROFILES[name]
    if name.endswith(".toml"):
        return read_coefficients(Path(name))
    if name.endswith(".csv"):
        from dopd.perf.fit import fit  # numpy: only where something is fitted
        from dopd.perf.points import read_points

        return fit(read_points(name))
    known = ", ".join(sorted(PROFILES))
    raise ConfigError("[engine]", "profile", f"unknown profile {name!r}; use one of {known}, or a .toml or .csv file")


def read_coefficients(path: Path) -> Profile:
    """A coefficient file: the fields of `Profile` as TOML. Raises ConfigError with file, key and reason."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), "file", f"cannot be read ({error}); give a TOML file") from error
    known = Profile.__dataclass_fields__
    for key in tables.keys() - known.keys():
        close = difflib.get_close_matches(key, known, 1) or [", ".join(known)]
        raise ConfigError(str(path), key, f"unknown; did you mean {close[0]}?")
    try:
        profile = msgspec.convert(tables, Profile)
    except msgspec.ValidationError as error:
        text, _, key = str(error).partition(" - at `$")
        raise ConfigError(str(path), key.strip("`.") or "file", text) from None
    check_profile(str(path), profile)
    return profile


def check_profile(where: str, profile: Profile) -> None:
    """Raises ConfigError for numbers that no engine has, among them milliseconds where seconds belong."""
    for key in Profile.__dataclass_fields__:
        value = getattr(profile, key)
        above = isinstance(value, int) and key not in ("large_batch_requests",)
        if isinstance(value, int | float) and not (math.isfinite(value) and (value > 0 if above else value >= 0)):
            raise ConfigError(where, key, f"is {value!r}; give a number {'above 0' if above else 'of at least 0'}")
    prompt_s = profile.prefill_fixed_s + 1000 * profile.prefill_token_s + 1e6 * profile.prefill_token2_s
    check_speed(where, "prefill_…_s", 1000, 1, prompt_s)
    for context in (1, profile.kv_total_tokens):
        step_s = profile.decode_fixed_s + profile.decode_request_s + context * profile.decode_context_s
        check_speed(where, "decode_…_s", 0, 1, step_s)
    if not profile.transfer_bytes_per_s:
        raise ConfigError(where, "transfer_bytes_per_s", "is 0; no KV would ever arrive")


def _shipped() -> dict[str, Profile]:
    profiles = [read_coefficients(path) for path in sorted((Path(__file__).parent / "profiles").glob("*.toml"))]
    return {profile.name: profile for profile in profiles}


PROFILES = _shipped()
