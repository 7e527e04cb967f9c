"""Values of ``metric_table.py`` as a page of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from csi_driver.model.read_counts import BOUNDS_S, Distribution
from csi_driver.wiring.metric_table import ALL, MetricSpec
from csi_driver.wiring.page_server import HttpPage

_SPECS = {spec.name: spec for spec in ALL}


class Value(NamedTuple):
    """One value of a family, with the values of its labels in their order."""

    name: str
    value: float | Distribution
    labels: tuple[str, ...] = ()


Values = Callable[[], Iterable[Value]]
"""What a process exports now."""


class TableCollector(Collector):
    """Families appear in the order of their first value. Raises KeyError for a name that the table does not have."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for value in self._values():
            spec = _SPECS[value.name]
            family = families.get(value.name)
            if family is None:
                family = families[value.name] = _family(spec)
            _add(family, value)
        return iter(families.values())


def metrics_page(*values: Values) -> Callable[[], HttpPage]:
    """A page of these values, and of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for each in values:
        registry.register(TableCollector(each))
    return lambda: HttpPage(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _family(spec: MetricSpec) -> Metric:
    if spec.kind == "counter":
        return CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
    if spec.kind == "gauge":
        return GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    return HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)


def _add(family: Metric, value: Value) -> None:
    if isinstance(family, HistogramMetricFamily) and isinstance(value.value, Distribution):
        family.add_metric(value.labels, _buckets(value.value), value.value.sum_s)
    elif isinstance(family, (CounterMetricFamily, GaugeMetricFamily)) and not isinstance(value.value, Distribution):
        family.add_metric(value.labels, value.value)
    else:
        raise TypeError(f"{value.name}: not a value of its kind")


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    total, found = 0, []
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), distribution.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
