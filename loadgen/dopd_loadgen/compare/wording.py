"""The figures of a comparison as text, for the terminal and the page alike. Consumes a `Comparison`. Pure."""

from collections.abc import Sequence

from dopd.policy import ORACLE
from dopd_loadgen.compare.figures import Largest, Line, Step, largest, losses
from dopd_loadgen.compare.result import Comparison
from dopd_loadgen.compare.statistics import Difference
from dopd_loadgen.report.wording import percent

AGGREGATED = "aggregated"
BOUND = "bound"


def title(trace: str, profile: str) -> str:
    """Of everything about one ground."""
    return f"{trace} on {profile}"


def header(comparison: Comparison) -> list[str]:
    """Column titles that go with `cells`. TTFT in seconds, TPOT in milliseconds."""
    return [
        "policy", "good req/s", "tok/s", "req/s/GPU", "tok/s/GPU", "attained", f"vs {comparison.config.reference}",
        "TTFT p50", "p90", "p99 s", "TPOT p50", "p90", "p99 ms", "GPU-s", "flips", "failed",
    ]  # fmt: skip


def rate_title(step: Step) -> str:
    """Above the lines of one rate."""
    return f"rate {step.rate_scale:g}: {step.offered_rps:.4g} req/s offered"


def cells(line: Line) -> list[str]:
    """One policy at one rate; the best in goodput has a mark."""
    means = line.means
    tps = means["goodput_tps"]
    return [
        f"{line.policy} *" if line.best else line.policy,
        number(means["goodput_rps"]),
        number(tps),
        number(means["goodput_rps_per_gpu"]),
        number(None if tps is None or not line.gpus else tps / line.gpus),
        percent(means["attainment"]),
        versus(line.versus),
        *(number(means[f"p{p}_ttft_s"]) for p in (50, 90, 99)),
        *(number(means[f"p{p}_tpot_s"], 1e3) for p in (50, 90, 99)),
        f"{means['gpu_seconds'] or 0:,.0f}",
        f"{means['flips'] or 0:.4g}",
        f"{means['failed'] or 0:.4g}",
    ]


def bound_cells(step: Step, gpus: int) -> list[str] | None:
    """The line of the bound, which has no latencies."""
    if step.bound is None:
        return None
    rps, tps = step.bound["goodput_rps"], step.bound["goodput_tps"]
    shown = [number(rps), number(tps), number(rps / gpus), number(tps / gpus), percent(step.bound["attainment"])]
    return [BOUND, *shown, *[""] * 10]


def versus(difference: Difference | None) -> str:
    """A difference in requests per second, and with two seeds or more how sure it is."""
    if difference is None:
        return ""
    if difference.mean == 0 and difference.low == difference.high:
        return "same"
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3g}"
    claim = {1: " better", -1: " worse", 0: ""}[difference.claim]
    return f"{difference.mean:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]{claim}"


LARGEST_HEADER = ("policy", "attains", "rate", "good req/s", "req/s/GPU", "rate vs reference")


def largest_cells(one: Largest) -> list[str]:
    """One policy at one target."""
    mark = "≥ " if "above" in one.kinds else "≤ " if "below" in one.kinds else ""
    reached = one.kinds != {"below"}
    return [
        one.policy,
        f"{one.target:.0%}",
        (mark + number(one.rate_scale) if reached else "never") + ("" if one.steady else " †"),
        number(one.goodput_rps) if reached else "-",
        number(one.goodput_rps_per_gpu, digits=4) if reached else "-",
        _ratio(one.versus),
    ]


def _ratio(difference: Difference | None) -> str:
    if difference is None:
        return ""
    text = f"×{1 + difference.mean:.3f}"
    if difference.low is None or difference.high is None:
        return text
    claim = {1: " better", -1: " worse", 0: ""}[difference.claim]
    return f"{text} [{1 + difference.low:.3f}, {1 + difference.high:.3f}]{claim}"


def notes(comparison: Comparison, trace: str, profile: str) -> list[str]:
    """What a reader must know about one ground, and what was tuned how."""
    return [
        *_standing(comparison, profile),
        *_oracle_losses(comparison, trace, profile),
        *_search_notes(comparison, trace, profile),
        *_clipped(comparison, trace, profile),
        *_bound_why(comparison, trace, profile),
        *_tuned(comparison, trace, profile),
    ]


def general_notes(comparison: Comparison) -> list[str]:
    """What holds for the whole."""
    config = comparison.config
    said = []
    if comparison.interrupted:
        said.append("Broken off: only what was finished is shown, and seeds may be missing.")
    if len(config.seeds) == 1:
        said.append(
            "One seed: the differences are those of one drawing of the arrivals, and none is claimed. "
            "`--seeds 5` gives intervals."
        )
    else:
        said.append(
            f"Means over {len(config.seeds)} seeds; each seed is one schedule for all policies. Brackets hold the 95 % "
            "interval (Student's t) of the paired difference; better and worse are said only where it leaves 0 out, "
            "and not corrected for the number of comparisons."
        )
    return said


def _standing(comparison: Comparison, profile: str) -> list[str]:
    config = comparison.config
    per_worker = config.profiles[profile]
    plural = "s" if per_worker > 1 else ""
    return [
        f"{config.workers} workers of {per_worker} GPU{plural} each, {config.workers * per_worker} GPUs; targets TTFT "
        f"≤ {config.slo_ttft_s:g} s, TPOT ≤ {config.slo_tpot_s * 1e3:g} ms. * has the largest mean goodput at its rate."
    ]


def _oracle_losses(comparison: Comparison, trace: str, profile: str) -> list[str]:
    names = comparison.config.policies
    oracles = [name for name in names if name.partition("[")[0] == ORACLE]
    others = [name for name in names if name.partition("[")[0] == AGGREGATED]
    said = []
    for ours in oracles:
        for theirs in others:
            lost = losses(comparison, trace, profile, ours, theirs)
            if not lost:
                said.append(f"{ours} loses to {theirs} at no rate shown.")
                continue
            at = "; ".join(f"{rate:g} ({versus(difference)} req/s)" for rate, difference in lost)
            said.append(f"{ours} loses to {theirs} at rate {at}.")
    return said


def _search_notes(comparison: Comparison, trace: str, profile: str) -> list[str]:
    found = largest(comparison, trace, profile)
    if not found:
        return []
    runs = sum(len(one.probed) for one in comparison.goodput if (one.trace, one.profile) == (trace, profile))
    said = [
        f"Largest rate that attains a target: to {comparison.config.tolerance:.0%}, per seed, by doubling, then "
        f"halving the interval between met and missed ({runs:,} probes, all in the JSON)."
    ]
    if not all(one.steady for one in found):
        said.append("† attained again above a rate at which it was missed; the largest is shown.")
    return said


def _clipped(comparison: Comparison, trace: str, profile: str) -> list[str]:
    loads = [one for one in comparison.loads if (one.trace, one.profile) == (trace, profile) and one.clipped]
    if not loads:
        return []
    cut = sum(sum(one.clipped.values()) for one in loads)
    total = sum(one.requests for one in loads)
    return [f"Longer than the profile's context and cut to fit: {cut:,} lengths of {total:,} requests, for all alike."]


def _bound_why(comparison: Comparison, trace: str, profile: str) -> list[str]:
    """Of the heaviest load, where it matters most."""
    there = [one for one in comparison.bounds if (one.trace, one.profile) == (trace, profile) and one.why]
    if not there:
        return []
    heaviest = max(there, key=lambda one: (one.rate_scale, -one.seed))
    return [f"{BOUND}, at rate {heaviest.rate_scale:g} and seed {heaviest.seed}: {heaviest.why}."]


def _tuned(comparison: Comparison, trace: str, profile: str) -> list[str]:
    here = [one for one in comparison.prepared if (one.trace, one.profile) == (trace, profile)]
    return [
        f"{one.policy}, made ready at rate {one.tune_rate:g} with another seed: {one.note}" for one in here if one.note
    ]


def number(value: float | None, scale: float = 1.0, digits: int = 3) -> str:
    """With so many digits; "-" for no sample."""
    if value is None:
        return "-"
    value *= scale
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def grounds(comparison: Comparison) -> Sequence[tuple[str, str]]:
    """Traces and profiles that have rows, in the order of the command line."""
    there = {(row.trace, row.profile) for row in comparison.rows}
    return [(t, p) for t in comparison.config.traces for p in comparison.config.profiles if (t, p) in there]
