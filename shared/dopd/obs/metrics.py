"""`Metrics`: what one service has counted, as Prometheus text.

Consumes `Source`s, which are asked when somebody looks, and observations of histograms, once per request; produces the
page for the operator port. Nothing happens per token: counters are kept as plain numbers by those who count.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from dopd.bus import Bus
from dopd.obs.metric_table import BY_NAME, METRICS, Metric, Sample, Source

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody reads
DROPS = ("slow_consumer", "outbox_overflow")
"""Faults that are shown before the first one: an increase from nothing is none to Prometheus."""
MOST_VALUES = 64
"""Values of one metric's labels; what comes beyond is counted under `other`, so that no series grows without bound."""


class Metrics(Collector):
    """One service's. Every name is one of `METRICS`; another one is a KeyError."""

    def __init__(self, service: str) -> None:
        self._registry = CollectorRegistry()
        self._sources: list[Source] = [lambda: [("dopd_build_info", (service, version("dopd")), 1.0)]]
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def add(self, source: Source) -> None:
        """Ask this source for its numbers whenever somebody looks."""
        self._sources.append(source)

    def histogram(self, name: str) -> Callable[[float], None]:
        """What to call with each value, in the metric's unit; about a microsecond."""
        metric = BY_NAME[name]
        return Histogram(name, metric.meaning, buckets=metric.buckets, registry=self._registry).observe

    def page(self) -> bytes:
        """All numbers now."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Family]:
        """Nothing: prometheus_client would collect at registration otherwise, to see the names."""
        return []

    def collect(self) -> Iterator[Family]:
        """For prometheus_client: the families that the sources have something of, in the order of the table."""
        found: dict[str, dict[tuple[str, ...], float | tuple[float, float]]] = {}
        for source in self._sources:
            for name, labels, value in source():
                values = found.setdefault(name, {})
                if labels not in values and len(values) >= MOST_VALUES:
                    labels = ("other",) * len(labels)
                    before = values.get(labels, 0.0)
                    assert isinstance(value, int | float) and isinstance(before, int | float), (
                        "summaries have no labels"
                    )
                    value += before
                values[labels] = value
        if unknown := found.keys() - BY_NAME.keys():
            raise KeyError(f"not in METRICS: {', '.join(sorted(unknown))}")
        for metric in METRICS:
            if metric.name in found:
                yield _family(metric, found[metric.name])


def _family(metric: Metric, values: dict[tuple[str, ...], float | tuple[float, float]]) -> Family:
    family = Family(metric.name.removesuffix("_total"), metric.meaning, metric.kind)
    for labels, value in sorted(values.items()):
        named = dict(zip(metric.labels, labels, strict=True))
        if isinstance(value, tuple):
            family.add_sample(metric.name + "_count", named, value[0])
            family.add_sample(metric.name + "_sum", named, value[1])
        else:
            family.add_sample(metric.name, named, value)
    return family


def bus_source(bus: Bus) -> Source:
    """What every service has: its bus."""

    def samples() -> Iterator[Sample]:
        yield "dopd_bus_connected", (), float(bus.connected)
        for kind, count in {**dict.fromkeys(DROPS, 0), **bus.fault_counts}.items():
            yield "dopd_bus_faults_total", (kind,), count

    return samples
