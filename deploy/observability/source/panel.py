"""What a dashboard is made of: queries with what they say, in plain data.

Consumes nothing; produces `Dashboard`s for `render.py`. `$__rate_interval` is Grafana's: at least four scrapes.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "state-timeline", "heatmap", "table"]

ENDED = 'sum(rate(dopd_requests_total{outcome!="cancelled"}[$__rate_interval]))'
REFUSED = "sum(rate(dopd_requests_refused_total[$__rate_interval]))"
GOOD = "sum(rate(dopd_requests_within_slo_total[$__rate_interval]))"
ATTAINMENT = f"{GOOD} / ({ENDED} + {REFUSED})"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and the name of each of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `unit` is Grafana's, `axis` what is counted; `names` are the meanings of whole numbers from 1 on,
    with their colours. Of a `band`, the second series is filled down to the first."""

    title: str
    says: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    axis: str = ""
    width: int = 12
    stack: bool = False
    bars: bool = False
    least: float | None = None
    most: float | None = None
    names: tuple[tuple[str, str], ...] = ()
    band: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page. `uid` is the end of its address and its file's name; `variables` are (name, query of its values)."""

    uid: str
    title: str
    says: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str], ...] = ()


def named(expr: str) -> str:
    """The series of an expression under the name of their process, such as the worker's id, instead of its address."""
    return f"sum by (service) (({expr}) * on (instance) group_left (service) dopd_build_info)"


def quantile(level: float, histogram: str) -> str:
    """Of all processes' histograms together."""
    return f"histogram_quantile({level}, sum by (le) (rate({histogram}_bucket[$__rate_interval])))"


def states(metric: str, label: str, names: tuple[tuple[str, str], ...]) -> str:
    """One number per process instead of a 0 or 1 per state: that of its present state, from 1 on."""
    return named(
        " or ".join(f'{number} * ({metric}{{{label}="{name}"}} == 1)' for number, (name, _) in enumerate(names, 1))
    )
