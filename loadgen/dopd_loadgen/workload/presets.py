"""Loads like those of real services, by name, and loads whose best P:D ratio moves.

Consumes `presets.toml`, which `python -m dopd_loadgen.workload.fit` writes from the traces: coefficients, and how far
what they generate is from the trace. Produces `Load`s; no trace is needed.

Lengths of input and output are drawn independently, as they nearly are in the traces. What the traces do not say:
`burstgpt-like` is fitted to tokens per minute, so how arrivals lie within a minute is an assumption (Poisson), and its
lengths are from another source (algorithms.md 1.12); `mooncake-like` is Poisson below 3 s, where its trace shows the
recorder's batches.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from dopd.errors import LoadError
from dopd_loadgen.workload.arrivals import Rate, markov, steady, varying, wandering
from dopd_loadgen.workload.lengths import Lengths, quantiles
from dopd_loadgen.workload.load import Load, crossfade, load, sequence
from dopd_loadgen.workload.prefix import Sharing

SHIFTS = ("shift-step", "shift-ramp")
SHIFT_PART_S = 300.0


@cache
def table() -> Mapping[str, Any]:
    """The presets' coefficients and fits, as `fit` wrote them."""
    return tomllib.loads(files("dopd_loadgen.workload").joinpath("presets.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """All that `preset` knows."""
    return [*table()["presets"], *SHIFTS]


def preset(name: str, part_s: float = SHIFT_PART_S) -> Load:
    """The load of that name at the rate of its trace; `part_s` is the length of a shift's part. Raises LoadError."""
    if name not in names():
        raise LoadError(name, f"no such preset; there are {', '.join(names())}")
    return shift(name, part_s) if name in SHIFTS else load_of(table()["presets"][name], phase=name)


def load_of(preset: Mapping[str, Any], phase: str = "") -> Load:
    """A load from a preset's table of coefficients."""
    arrivals = preset["arrivals"]
    sharing = Sharing(**preset["sharing"]) if "sharing" in preset else None
    isl, osl = lengths_of(preset)
    return load(varying(_rate(arrivals), arrivals["burstiness"]), isl, osl, sharing, phase)


def lengths_of(preset: Mapping[str, Any]) -> tuple[Lengths, Lengths]:
    """The preset's input and output lengths."""
    lengths = preset["lengths"]
    isl, osl = (quantiles(lengths[f"{which}_shares"], lengths[f"{which}_tokens"]) for which in ("isl", "osl"))
    return isl, osl


def shift(name: str, part_s: float) -> Load:
    """Code, then conversation, then reasoning, over and over: the load under which a fixed P:D ratio must lose.

    Each part is Poisson with the lengths of a preset, at the rate that asks for the same GPU time (`shift` in
    `presets.toml`), so that nothing changes but how that time divides into prefill and decode: about 10:1, 1:1, 1:10.
    `shift-ramp` goes from one to the next in straight lines of a whole part's length, so it never stands still.
    """
    parts = [
        (load(steady(rate_rps), *lengths_of(table()["presets"][source]), phase=source), part_s)
        for source, rate_rps in table()["shift"]["rates_rps"].items()
    ]
    return sequence(parts) if name == "shift-step" else crossfade(parts, part_s)


def _rate(arrivals: Mapping[str, Any]) -> Rate:
    if arrivals["kind"] == "markov":
        return markov(arrivals["rates_rps"], arrivals["moves"], arrivals["step_s"])
    return wandering(arrivals["rate_rps"], arrivals["cv"], arrivals["memory_s"])
