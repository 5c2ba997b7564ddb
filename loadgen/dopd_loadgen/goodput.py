"""`--goodput ttft:500 tpot:50 [e2el:MS]`, or a preset's name. Consumes the arguments; produces targets in seconds.

The form and its milliseconds are those of vLLM's benchmark. The presets are MLPerf inference's server targets, and with
`-interactive` those of its interactive scenario.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dopd.errors import LoadError

# MLPerf inference: TTFT, TPOT in ms, server and interactive.
_MLPERF = {
    "llama2-70b": ((2000, 200), (450, 40)),
    "llama3.1-8b": ((2000, 100), (500, 30)),
    "llama3.1-405b": ((6000, 175), (4500, 80)),
    "mixtral": ((2000, 200), None),
    "deepseek-r1": ((2000, 80), (1500, 15)),
    "gpt-oss-120b": ((3000, 80), (2000, 15)),
}
NO_TARGET_S = 1e9

PRESETS: dict[str, tuple[int, int]] = {
    f"mlperf-{model}{suffix}": targets
    for model, pair in _MLPERF.items()
    for suffix, targets in zip(("", "-interactive"), pair, strict=True)
    if targets is not None
}


@dataclass(frozen=True, slots=True)
class Goodput:
    """Targets of a run, in seconds; one that was not named is `NO_TARGET_S`, which every latency meets."""

    ttft_s: float
    tpot_s: float
    e2e_s: float | None = None


def parse_goodput(words: Sequence[str]) -> Goodput:
    """Raises LoadError for an unknown key or preset, or a value that is no positive number of milliseconds."""
    if len(words) == 1 and words[0] in PRESETS:
        ttft_ms, tpot_ms = PRESETS[words[0]]
        return Goodput(ttft_ms / 1e3, tpot_ms / 1e3)
    targets: dict[str, float] = {}
    for word in words:
        key, _, value = word.partition(":")
        if key not in ("ttft", "tpot", "e2el") or key in targets:
            forms = "ttft:MS, tpot:MS and e2el:MS, each once, or one of " + ", ".join(PRESETS)
            raise LoadError("--goodput", f"{word!r} is not known here; give {forms}")
        targets[key] = _seconds(word, value)
    return Goodput(targets.get("ttft", NO_TARGET_S), targets.get("tpot", NO_TARGET_S), targets.get("e2el"))


def _seconds(word: str, value: str) -> float:
    try:
        ms = float(value)
    except ValueError:
        ms = -1.0
    if not 0 < ms < float("inf"):
        raise LoadError("--goodput", f"{word!r}: give a positive number of milliseconds after the colon")
    return ms / 1e3
