"""The figures of a run as types. `metrics` makes them; tables, files, plots and pages read them.

Times are seconds, rates per second, shares 0 to 1; `None` is "no sample", never zero. docs/metrics.md defines each.
"""

import msgspec

from dopd_loadgen.drive import Lag

METRICS = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50.0, 90.0, 95.0, 99.0)


class Settings(msgspec.Struct, frozen=True):
    """What to show: which latencies, which percentiles, how wide the bins over time are (0: chosen)."""

    metrics: tuple[str, ...] = METRICS
    percentiles: tuple[float, ...] = PERCENTILES
    bin_s: float = 0.0


class Spread(msgspec.Struct, frozen=True):
    """A latency over `n` samples. `percentiles_s` is keyed as in vLLM's `p99`: "50", "99.9"."""

    n: int
    mean_s: float | None = None
    std_s: float | None = None
    percentiles_s: dict[str, float] = {}


class Attainment(msgspec.Struct, frozen=True):
    """Shares of all requests that were completed and met the target; `joint` met all of them."""

    joint: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None


class Figures(msgspec.Struct, frozen=True):
    """The figures of one set of requests: those due from `start_s` to `end_s`, of one phase or all.

    Rates are per second of `rated_s`: the window's length, or, when all was due at once, until the last was settled.
    `failures` has a count per kind. `latencies` has the chosen ones of ttft, tpot, itl, e2el, over completed requests;
    the `_from_send` set counts from the actual send.
    """

    start_s: float
    end_s: float
    rated_s: float
    requests: int
    completed: int
    good: int
    failures: dict[str, int]
    missing_tokens: int
    input_tokens: int
    output_tokens: int
    good_tokens: int
    attainment: Attainment
    attainment_from_send: Attainment
    offered_rps: float
    completed_rps: float
    goodput_rps: float
    goodput_from_send_rps: float
    input_tps: float
    output_tps: float
    goodput_tps: float
    latencies: dict[str, Spread]
    latencies_from_send: dict[str, Spread]


class Bin(msgspec.Struct, frozen=True):
    """A stretch of the schedule: how many requests were due in it, and how many of those were good."""

    start_s: float
    end_s: float
    requests: int
    good: int


class Summary(msgspec.Struct, frozen=True):
    """All figures of a run. `outside` requests were due in warm-up or cool-down, `unsent` ones never left.

    `lag` is of those in the window, and `degraded` says in words that it was too much. `gpus` is the mean number held.
    """

    figures: Figures
    phases: dict[str, Figures]
    bins: tuple[Bin, ...]
    lag: Lag | None
    degraded: str
    closed_loop: bool
    interrupted: bool
    outside: int
    unsent: int
    slo_ttft_s: float
    slo_tpot_s: float
    slo_e2e_s: float | None
    gpus: float | None
    goodput_rps_per_gpu: float | None
    goodput_tps_per_gpu: float | None
