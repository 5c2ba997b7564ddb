"""What load is wanted: `WorkloadSpec`, and which wishes contradict each other.

Consumes the specification, and looks whether its file is there; produces a LoadError that names the flag, or nothing.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from dopd.errors import LoadError
from dopd_loadgen.workload import presets
from dopd_loadgen.workload.read import Format

SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """The load that is wanted. Flags have the fields' names, with dashes.

    `source` is a preset's name, a trace's path, or "synthetic" with `arrivals`, `isl` and `osl` in words (see
    `expression`). With any source `isl` and `osl` replace its lengths, `sharegpt` its prompts, `request_rate` and
    `burstiness` its times. `start_s` is in the source's time, `duration_s` is the run's. `part_s` is the length of a
    part of a `shift-*` preset in the run. With `turn` a looped trace begins at a random point, which the seed draws.
    """

    source: str
    format: Format | None = None
    sort: bool = False
    servegen_model: str | None = None
    arrivals: str | None = None
    isl: str | None = None
    osl: str | None = None
    sharegpt: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    num_prompts: int | None = None
    loop: bool = False
    turn: bool = False
    rate_scale: float = 1.0
    request_rate: float | None = None
    burstiness: float = 1.0
    part_s: float | None = None
    max_isl: int | None = None
    max_osl: int | None = None
    max_model_len: int | None = None
    seed: int = 0

    @property
    def path(self) -> Path | None:
        """The trace, when the source is one."""
        return None if self.source == SYNTHETIC or self.source in presets.names() else Path(self.source)


def check(spec: WorkloadSpec) -> None:
    """Raises LoadError that names the flag when a value is out of range or two contradict each other."""
    _check_ranges(spec)
    _check_times(spec)
    if spec.sharegpt is not None and spec.isl is not None:
        raise LoadError("--isl", "prompts of --sharegpt are given word by word and have their own length")
    if spec.part_s is not None and spec.source not in presets.SHIFTS:
        raise LoadError("--part-s", f"is for {' and '.join(presets.SHIFTS)}")
    if spec.source != SYNTHETIC and spec.arrivals is not None:
        raise LoadError("--arrivals", "is for synthetic loads; --request-rate gives a source new times")
    if spec.path is None:
        _check_made(spec)
    elif not spec.path.exists():
        known = ", ".join([SYNTHETIC, *presets.names()])
        raise LoadError(spec.source, f"neither a file nor one of {known}")


def check_format(spec: WorkloadSpec, format: Format) -> None:
    """As `check`, once the format of the file is known."""
    if spec.servegen_model is not None and format != "servegen":
        raise LoadError("--servegen-model", f"{spec.source} is {format}, not servegen")
    if format == "servegen":
        if spec.duration_s is None:
            raise LoadError("--duration-s", "servegen files are parameters: say how long to draw from them")
        for flag, given in (("--loop", spec.loop), ("--request-rate", spec.request_rate), ("--sort", spec.sort)):
            if given:
                raise LoadError(flag, "servegen files are parameters, not requests")
    if format == "sharegpt":
        if spec.request_rate is None:
            raise LoadError("--request-rate", f"{spec.source} has no times: give a rate (inf for all at once)")
        for flag, value in (
            ("--isl", spec.isl), ("--sharegpt", spec.sharegpt), ("--start-s", spec.start_s), ("--sort", spec.sort)
        ):  # fmt: skip
            if value:
                raise LoadError(flag, f"{spec.source} is prompts word by word, without times")


def _check_made(spec: WorkloadSpec) -> None:
    """A preset or a synthetic load."""
    for flag, given in (
        ("--format", spec.format), ("--sort", spec.sort), ("--servegen-model", spec.servegen_model),
        ("--loop", spec.loop),
    ):  # fmt: skip
        if given:
            raise LoadError(flag, f"is for trace files; {spec.source} is made to measure")
    if spec.duration_s is None and spec.num_prompts is None:
        raise LoadError("--duration-s", f"{spec.source} has no end: give --duration-s or --num-prompts")
    if spec.source != SYNTHETIC:
        return
    for length, text in (("--isl", spec.isl), ("--osl", spec.osl)):
        if text is None and spec.sharegpt is None:
            raise LoadError(length, "a synthetic load needs lengths, such as 1000 or lognormal:mean=1200,p50=800")
    if (spec.arrivals is None) == (spec.request_rate is None):
        raise LoadError("--arrivals", "a synthetic load needs either --arrivals or --request-rate")


def _check_times(spec: WorkloadSpec) -> None:
    if spec.request_rate is not None and spec.rate_scale != 1:
        raise LoadError("--rate-scale", "scales the source's times, and --request-rate replaces them")
    if spec.request_rate is None and spec.burstiness != 1:
        raise LoadError("--burstiness", "is of the times that --request-rate draws")
    ends = spec.duration_s is not None or spec.num_prompts is not None
    if spec.request_rate == math.inf and spec.num_prompts is None and spec.duration_s is not None:
        raise LoadError("--num-prompts", "with --request-rate inf all come at once: say how many")
    if spec.turn and not spec.loop:
        raise LoadError("--turn", "is for a trace that goes round: give --loop, too")
    if spec.loop and not ends:
        raise LoadError("--loop", "has no end: give --duration-s or --num-prompts")


def _check_ranges(spec: WorkloadSpec) -> None:
    for flag, value in (
        ("--duration-s", spec.duration_s), ("--rate-scale", spec.rate_scale), ("--part-s", spec.part_s),
    ):  # fmt: skip
        if value is not None and not (math.isfinite(value) and value > 0):
            raise LoadError(flag, f"{value} is not above 0")
    if not (math.isfinite(spec.start_s) and spec.start_s >= 0):
        raise LoadError("--start-s", f"{spec.start_s} is not 0 or more")
    if spec.num_prompts is not None and spec.num_prompts < 1:
        raise LoadError("--num-prompts", f"{spec.num_prompts} is not above 0")
    if spec.request_rate is not None and not spec.request_rate > 0:
        raise LoadError("--request-rate", f"{spec.request_rate} is not above 0")
