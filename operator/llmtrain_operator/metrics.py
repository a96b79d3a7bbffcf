"""The operator's own metrics. Labels are bounded: never a name or a text that a user chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 4, 10)
_SLOW = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)

Gauges = Callable[[], Mapping[str, float]]


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llmtrain_operator_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.reconcile = Histogram(
            "llmtrain_operator_reconcile_seconds",
            "One turn of a job's loop, requests included.",
            buckets=_QUICK,
            registry=registry,
        )
        self.placement = Histogram(
            "llmtrain_operator_placement_seconds",
            "One cycle of the scheduler.",
            buckets=_QUICK,
            registry=registry,
        )
        self.time_to_running = Histogram(
            "llmtrain_operator_time_to_running_seconds",
            "From the creation of a job to its first gang running.",
            buckets=_SLOW,
            registry=registry,
        )
        self.recovery = Histogram(
            "llmtrain_operator_recovery_seconds",
            "From a failure to the gang running again.",
            ["action"],
            buckets=_SLOW,
            registry=registry,
        )
        self.plan_error = Histogram(
            "llmtrain_operator_plan_error_ratio",
            "Measured over planned time of a step.",
            buckets=_RATIOS,
            registry=registry,
        )
        self.preemptions = Counter(
            "llmtrain_operator_preemptions",
            "Gangs stopped for one of higher priority.",
            registry=registry,
        )
        self.backfilled = Counter(
            "llmtrain_operator_backfilled",
            "Gangs placed before a job ahead of them that could not start yet.",
            registry=registry,
        )
        self.events = Counter(
            "llmtrain_operator_informer_events",
            "What informers took in.",
            ["informer", "kind"],
            registry=registry,
        )
        # Looking a child up by its labels costs more than the count itself.
        self._event_children: dict[tuple[str, str], Counter] = {}
        self.leader = Gauge(
            "llmtrain_operator_leader", "1 while this process holds the lease.", registry=registry
        )

    def event(self, informer: str, kind: str) -> None:
        """Count one event of an informer."""
        child = self._event_children.get((informer, kind))
        if child is None:
            child = self._event_children[informer, kind] = self.events.labels(informer, kind)
        child.inc()

    def show(self, name: str, text: str, label: str, values: Gauges) -> None:
        """Show gauges that are computed when somebody asks."""
        self.registry.register(_Computed(name, text, label, values))


class _Computed(Collector):
    def __init__(self, name: str, text: str, label: str, values: Gauges):
        self._about = (name, text)
        self._label = label
        self._values = values

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Compute the gauges."""
        name, text = self._about
        if not self._label:
            yield GaugeMetricFamily(name, text, value=self._values()[""])
            return
        family = GaugeMetricFamily(name, text, labels=[self._label])
        for key, value in self._values().items():
            family.add_metric([key], value)
        yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Say which metric this is, without computing it."""
        return [GaugeMetricFamily(*self._about)]
