"""Metrics of the operator. Labels are bounded: never a name or a text that a user chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 4, 10)
_LONG = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)

Gauges = Callable[[], Mapping[str, float]]


class Metrics:
    """All metrics of one process, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "api_requests",
            "Requests to the API server. Code 0: no response.",
            ["verb", "resource", "code"],
        )
        self.reconcile = self._histogram(
            "reconcile_seconds", "One reconcile of a job, requests included.", _SHORT
        )
        self.placement = self._histogram("placement_seconds", "One cycle of the scheduler.", _SHORT)
        self.time_to_running = self._histogram(
            "time_to_running_seconds",
            "From the creation of a job to its first running gang.",
            _LONG,
        )
        self.recovery = self._histogram(
            "recovery_seconds", "From a failure to the running gang.", _LONG, ["action"]
        )
        self.plan_error = self._histogram(
            "plan_error_ratio", "Measured over planned time of a step.", _RATIOS
        )
        self.preemptions = self._counter(
            "preemptions", "Gangs preempted by jobs of higher priority."
        )
        self.backfilled = self._counter(
            "backfilled", "Gangs placed before a job ahead of them that could not start yet."
        )
        self.events = self._counter(
            "informer_events", "Events received by informers.", ["informer", "kind"]
        )
        # Looking up a child by its labels costs more than the count itself.
        self._event_children: dict[tuple[str, str], Counter] = {}
        self.leader = Gauge(
            "llmtrain_operator_leader",
            "1 while this process holds the lease.",
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"llmtrain_operator_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        full = f"llmtrain_operator_{name}"
        return Histogram(full, text, labels, buckets=buckets, registry=self.registry)

    def event(self, informer: str, kind: str) -> None:
        """Count one event of an informer."""
        child = self._event_children.get((informer, kind))
        if child is None:
            child = self._event_children[informer, kind] = self.events.labels(informer, kind)
        child.inc()

    def add_gauge(self, name: str, text: str, label: str, values: Gauges) -> None:
        """Register a gauge that is computed on every scrape."""
        self.registry.register(_ComputedGauge(name, text, label, values))


class _ComputedGauge(Collector):
    def __init__(self, name: str, text: str, label: str, values: Gauges):
        self._name = name
        self._text = text
        self._label = label
        self._values = values

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Compute the gauge."""
        if not self._label:
            yield GaugeMetricFamily(self._name, self._text, value=self._values()[""])
            return
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for key, value in self._values().items():
            family.add_metric([key], value)
        yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the name of the metric, without computing it."""
        return [GaugeMetricFamily(self._name, self._text)]
