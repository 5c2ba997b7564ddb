"""From a run's records to its figures. Consumes a `Run`; produces a `Summary`. Pure.

Real and virtual runs go through the same code. What meets a target is decided by `dopd.slo` alone; docs/metrics.md
defines every figure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from dopd.slo import Met, Slo, met, tpot_s
from dopd_loadgen.drive import degraded, schedule_lag
from dopd_loadgen.model import Failure, Record, Run
from dopd_loadgen.report.summary import Attainment, Bin, Figures, Settings, Spread, Summary

MOST_BINS = 48


def summarise(run: Run, settings: Settings | None = None) -> Summary:
    """All figures of a run. Only requests due in the measured window count, and only if they were sent."""
    settings = settings or Settings()
    slo = Slo(run.slo_ttft_s, run.slo_tpot_s, math.inf if run.slo_e2e_s is None else run.slo_e2e_s)
    sent = sorted((r for r in run.records if not unsent(r)), key=lambda r: (r.intended_s, r.index))
    start_s, end_s = window(run)
    inside = [r for r in sent if start_s <= r.intended_s <= end_s]
    figures = _figures(inside, start_s, end_s, slo, settings)
    gpus = mean_gpus(run)
    return Summary(
        figures=figures,
        phases=_phases(inside, slo, settings),
        bins=_bins(sent, min(run.span_s, _broken_off_s(run)), slo, settings.bin_s),
        lag=schedule_lag(inside),
        degraded=degraded(inside, closed=run.max_concurrency is not None),
        closed_loop=run.max_concurrency is not None,
        interrupted=run.interrupted,
        outside=len(sent) - len(inside),
        unsent=len(run.records) - len(sent),
        slo_ttft_s=run.slo_ttft_s,
        slo_tpot_s=run.slo_tpot_s,
        slo_e2e_s=run.slo_e2e_s,
        gpus=gpus,
        goodput_rps_per_gpu=None if gpus is None else figures.goodput_rps / gpus,
        goodput_tps_per_gpu=None if gpus is None else figures.goodput_tps / gpus,
    )


def window(run: Run) -> tuple[float, float]:
    """Start and end of the measured window: the schedule without warm-up and cool-down, both ends included.

    Where a run was broken off, the window ends with the last request that was sent.
    """
    return run.warmup_s, max(run.warmup_s, min(run.span_s - run.cooldown_s, _broken_off_s(run)))


def unsent(record: Record) -> bool:
    """Whether the run ended before this request was sent; one that left and never came back is a miss instead."""
    return record.failure == "unsent" and record.sent_s is None


def failure_of(record: Record) -> Failure:
    """Why it does not count as completed; an answer that lacks forced tokens is short, whatever it said of itself."""
    if record.failure == "unsent" and record.sent_s is not None:
        return "timeout"
    return "short" if not record.failure and missing_tokens(record) else record.failure


def missing_tokens(record: Record) -> int:
    """Tokens that were forced and did not come in."""
    return max(0, record.osl_tokens - sum(record.counts)) if record.forced else 0


def ttfts_s(records: Iterable[Record], from_send: bool = False) -> list[float]:
    """Time to the first batch of tokens, of each completed request that got one."""
    return [r.times_s[0] - _zero_s(r, from_send) for r in _answered(records)]


def tpots_s(records: Iterable[Record]) -> list[float]:
    """Time per output token, of each completed request with two tokens or more."""
    return [tpot_s(r.times_s[0], r.times_s[-1], n) for r in _answered(records) if (n := sum(r.counts)) > 1]


def itls_s(records: Iterable[Record]) -> list[float]:
    """Every gap between two batches of tokens of one completed request."""
    return [gap for r in _answered(records) for gap in np.diff(r.times_s).tolist()]


def e2es_s(records: Iterable[Record], from_send: bool = False) -> list[float]:
    """Time to the last batch of tokens, of each completed request that got one."""
    return [r.times_s[-1] - _zero_s(r, from_send) for r in _answered(records)]


def spread(samples_s: Sequence[float], percentiles: Sequence[float]) -> Spread:
    """Mean, standard deviation (of the population) and percentiles (linear), as numpy and vLLM make them."""
    if not len(samples_s):
        return Spread(0)
    ordered = np.sort(samples_s)  # sums of floats depend on the order, and figures must not
    values = np.percentile(ordered, list(percentiles)).tolist()
    names = [percentile_name(p) for p in percentiles]
    return Spread(len(ordered), float(ordered.mean()), float(ordered.std()), dict(zip(names, values, strict=True)))


def percentile_name(percentile: float) -> str:
    """ "99" and "99.9": what stands behind the `p` in vLLM's keys."""
    return f"{percentile:g}"


def mean_gpus(run: Run) -> float | None:
    """GPUs held on average over the schedule: GPU-seconds where they were counted, else the number given."""
    span_s = min(run.span_s, _broken_off_s(run))
    if run.gpu_seconds > 0 and span_s > 0:
        return run.gpu_seconds / span_s
    return float(run.gpus) if run.gpus > 0 else None


def _broken_off_s(run: Run) -> float:
    if not any(unsent(r) for r in run.records):
        return math.inf
    return max((r.intended_s for r in run.records if not unsent(r)), default=0.0)


def _zero_s(record: Record, from_send: bool) -> float:
    return record.sent_s if from_send and record.sent_s is not None else record.intended_s


def _answered(records: Iterable[Record]) -> Iterable[Record]:
    return (r for r in records if r.times_s and not failure_of(r))


def _met(record: Record, slo: Slo, from_send: bool = False) -> Met:
    """The targets a request met; a request that was not completed met none."""
    if not record.times_s or failure_of(record):
        return Met(False, False, False)
    zero_s = _zero_s(record, from_send)
    return met(slo, zero_s, record.times_s[0], record.times_s[-1], sum(record.counts))


def _figures(records: Sequence[Record], start_s: float, end_s: float, slo: Slo, settings: Settings) -> Figures:
    rated_s = end_s - start_s if end_s > start_s else _settled_s(records, start_s)
    completed = [r for r in records if not failure_of(r)]
    mets = [_met(r, slo) for r in records]
    from_send = [_met(r, slo, from_send=True) for r in records]
    good = [r for r, one in zip(records, mets, strict=True) if all(one)]
    tokens = {"input": sum(_isl(r) for r in completed), "output": _tokens(completed), "good": _tokens(good)}
    failures = Counter(kind for r in records if (kind := failure_of(r)))

    def rate(count: int) -> float:
        return count / rated_s if rated_s > 0 else 0.0

    return Figures(
        start_s=start_s,
        end_s=end_s,
        rated_s=rated_s,
        requests=len(records),
        completed=len(completed),
        good=len(good),
        failures=dict(sorted(failures.items())),
        missing_tokens=sum(missing_tokens(r) for r in records),
        input_tokens=tokens["input"],
        output_tokens=tokens["output"],
        good_tokens=tokens["good"],
        attainment=_attainment(mets, slo),
        attainment_from_send=_attainment(from_send, slo),
        offered_rps=rate(len(records)),
        completed_rps=rate(len(completed)),
        goodput_rps=rate(len(good)),
        goodput_from_send_rps=rate(sum(all(one) for one in from_send)),
        input_tps=rate(tokens["input"]),
        output_tps=rate(tokens["output"]),
        goodput_tps=rate(tokens["good"]),
        latencies=_latencies(completed, settings),
        latencies_from_send=_latencies_from_send(completed, settings),
    )


def _attainment(mets: Sequence[Met], slo: Slo) -> Attainment:
    if not mets:
        return Attainment()
    n = len(mets)
    e2el = None if math.isinf(slo.e2e_s) else sum(one.e2e for one in mets) / n
    shares = (sum(all(one) for one in mets) / n, sum(one.ttft for one in mets) / n, sum(one.tpot for one in mets) / n)
    return Attainment(*shares, e2el)


def _latencies(completed: Sequence[Record], settings: Settings) -> dict[str, Spread]:
    makers = {"ttft": ttfts_s, "tpot": tpots_s, "itl": itls_s, "e2el": e2es_s}
    return {name: spread(makers[name](completed), settings.percentiles) for name in settings.metrics}


def _latencies_from_send(completed: Sequence[Record], settings: Settings) -> dict[str, Spread]:
    makers = {"ttft": ttfts_s, "e2el": e2es_s}
    chosen = [name for name in settings.metrics if name in makers]
    return {name: spread(makers[name](completed, from_send=True), settings.percentiles) for name in chosen}


def _isl(record: Record) -> int:
    """The server's own count of the prompt where it gave one."""
    return record.prompt_tokens or record.isl_tokens


def _tokens(records: Iterable[Record]) -> int:
    return sum(sum(r.counts) for r in records)


def _settled_s(records: Sequence[Record], start_s: float) -> float:
    """How long it took from the start until nothing was under way any more."""
    ends = [r.ended_s if r.ended_s is not None else max(r.times_s, default=r.intended_s) for r in records]
    return max(ends, default=start_s) - start_s


def _phases(records: Sequence[Record], slo: Slo, settings: Settings) -> dict[str, Figures]:
    """Figures per phase, by order of appearance; each is rated from its first to its last intended send."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(record.phase, []).append(record)
    if set(parts) <= {""}:
        return {}
    return {
        name: _figures(part, part[0].intended_s, part[-1].intended_s, slo, settings) for name, part in parts.items()
    }


def _bins(records: Sequence[Record], span_s: float, slo: Slo, bin_s: float) -> tuple[Bin, ...]:
    """Attainment over the whole schedule, warm-up and cool-down included, by intended send."""
    if span_s <= 0 or math.isinf(span_s):
        return ()
    width_s = bin_s or round_width_s(span_s / MOST_BINS)
    n = max(1, round(span_s / width_s))  # the last takes what is over: a sliver of a bin would show an absurd rate
    due, good = [0] * n, [0] * n
    for record in records:
        place = min(n - 1, int(record.intended_s / width_s))
        due[place] += 1
        good[place] += all(_met(record, slo))
    return tuple(Bin(i * width_s, span_s if i == n - 1 else (i + 1) * width_s, due[i], good[i]) for i in range(n))


def round_width_s(least_s: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below."""
    ten = 10.0 ** math.floor(math.log10(least_s))
    return next(step * ten for step in (1, 2, 5, 10) if step * ten >= least_s * (1 - 1e-9))
