"""Several results side by side, as rows of numbers. Consumes `Stored`s; pure.

Our figures stand apart from vLLM's: the former start at the intended send and know a window, the latter do not.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dopd_loadgen.report.result import Stored
from dopd_loadgen.report.summary import Summary
from dopd_loadgen.report.wording import NAMES, percent


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of several results; None where a result does not have it."""

    title: str
    unit: str
    values: tuple[float | None, ...]


def names(stored: Sequence[Stored]) -> list[str]:
    """What to call each result: its label, with the rate and if need be a number where labels are the same."""
    called = [one.label for one in stored]
    for number, one in enumerate(stored):
        if [other.label for other in stored].count(one.label) > 1:
            called[number] += f" @ {_rate_rps(one):.4g}/s"
    return [name if called.count(name) == 1 else f"{name} #{n}" for n, name in enumerate(called, 1)]


def comparison(stored: Sequence[Stored]) -> list[tuple[str, list[Row]]]:
    """Titled sections: our figures where a result has them, and vLLM's, which mean the same in all of them."""
    own = [one.summary for one in stored]
    sections = []
    if any(own):
        sections.append(("In the window, from intended send", _own_rows(own)))
    sections.append(("As vLLM counts: whole run, from send", _bench_rows(stored)))
    return [
        (title, [row for row in rows if any(value is not None for value in row.values)]) for title, rows in sections
    ]


def comparison_cells(row: Row) -> list[str]:
    """The values, from the second on with their ratio to the first."""
    cells = []
    for number, value in enumerate(row.values):
        if value is None:
            cells.append("-")
            continue
        text = percent(value / 100) if row.unit == "%" else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        first = row.values[0]
        cells.append(f"{text}  ×{value / first:.2f}" if number and first else text)
    return cells


def _own_rows(summaries: Sequence[Summary | None]) -> list[Row]:
    def row(title: str, unit: str, value: Callable[[Summary], float | None]) -> Row:
        return Row(title, unit, tuple(None if one is None else value(one) for one in summaries))

    rows = [
        row("Offered", "req/s", lambda s: s.figures.offered_rps),
        row("Goodput", "req/s", lambda s: s.figures.goodput_rps),
        row("Goodput", "tok/s", lambda s: s.figures.goodput_tps),
        row("Goodput per GPU", "req/s", lambda s: s.goodput_rps_per_gpu),
        row("Attainment", "%", lambda s: _percent(s.figures.attainment.joint)),
        row("Attainment TTFT", "%", lambda s: _percent(s.figures.attainment.ttft)),
        row("Attainment TPOT", "%", lambda s: _percent(s.figures.attainment.tpot)),
        row("Requests", "", lambda s: s.figures.requests),
        row("Not completed", "", lambda s: s.figures.requests - s.figures.completed),
        row("Missing tokens", "", lambda s: s.figures.missing_tokens),
    ]
    for key, percentile in _latency_keys(summaries):

        def latency(s: Summary, key: str = key, percentile: str = percentile) -> float | None:
            spread = s.figures.latencies.get(key)
            value = None if spread is None else spread.percentiles_s.get(percentile)
            return None if value is None else value * 1e3

        rows.append(row(f"{NAMES[key]} p{percentile}", "ms", latency))
    rows.append(row("Schedule lag p99", "ms", lambda s: None if s.lag is None else s.lag.p99_s * 1e3))
    return rows


def _latency_keys(summaries: Sequence[Summary | None]) -> list[tuple[str, str]]:
    """Metric and percentile that some result has, in order."""
    found = {
        (key, name): None
        for summary in summaries
        if summary is not None
        for key, spread in summary.figures.latencies.items()
        for name in spread.percentiles_s
    }
    return sorted(found, key=lambda one: (list(NAMES).index(one[0]), float(one[1])))


BENCH_ROWS: tuple[tuple[str, str, str], ...] = (
    ("completed", "Successful requests", ""),
    ("failed", "Failed requests", ""),
    ("duration", "Duration", "s"),
    ("request_throughput", "Request throughput", "req/s"),
    ("request_goodput", "Request goodput", "req/s"),
    ("output_throughput", "Output throughput", "tok/s"),
    ("total_token_throughput", "Total token throughput", "tok/s"),
    ("max_output_tokens_per_s", "Peak output throughput", "tok/s"),
    ("max_concurrent_requests", "Peak concurrent requests", ""),
)


def _bench_rows(stored: Sequence[Stored]) -> list[Row]:
    rows = [Row(title, unit, tuple(one.keys.get(key) for one in stored)) for key, title, unit in BENCH_ROWS]
    for name, title in NAMES.items():
        for key in _statistics(stored, name):
            values = tuple(one.keys.get(key) for one in stored)
            rows.append(Row(f"{title} {key.removesuffix(f'_{name}_ms')}", "ms", values))
    return rows


def _statistics(stored: Sequence[Stored], name: str) -> list[str]:
    """The keys `mean_ttft_ms`, `median_ttft_ms`, `p99_ttft_ms` … that some result has."""
    wanted = re.compile(rf"(mean|median|p(?!50_)[\d.]+)_{name}_ms")  # the median is p50
    return list({key: None for one in stored for key in one.keys if wanted.fullmatch(key)})


def _rate_rps(stored: Stored) -> float:
    if stored.summary is not None:
        return stored.summary.figures.offered_rps
    return float(stored.keys.get("request_throughput") or 0.0)


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100
