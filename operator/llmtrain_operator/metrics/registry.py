"""The metrics of one process: counters and histograms that its parts update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from llmtrain_core.api.conditions import Reason
from llmtrain_core.images import VERSION
from llmtrain_operator.metrics.gpu_seconds import GpuSeconds
from llmtrain_operator.metrics.reasons import FAILURE_REASONS, reason_label

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 4, 10)
_LONG = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)

SUCCEEDED, FAILED = "Succeeded", "Failed"

disable_created_metrics()  # type: ignore[no-untyped-call]  # not needed, a line for each series


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
        self._finished = self._counter(
            "finished", "Jobs that ended, by their result.", ["result", "reason"]
        )
        self._failures = self._counter("failures", "Failures of attempts.", ["reason"])
        self._restarts = self._counter("restarts", "Restarts of gangs after failures.", ["reason"])
        self._start_at_zero()
        self.gpu_seconds = GpuSeconds()
        self.registry.register(_GpuSecondsCollector(self.gpu_seconds))
        self._count_queue()
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
        self._describe_process()

    def _count_queue(self) -> None:
        self.preemptions = self._counter(
            "preemptions", "Gangs preempted by jobs of higher priority."
        )
        self.backfilled = self._counter(
            "backfilled", "Gangs placed before a job ahead of them that could not start yet."
        )
        self.lapsed = self._counter(
            "lapsed_assignments", "Assignments of nodes that no status write took in time."
        )
        self.denied_writes = self._counter(
            "denied_status_writes", "Status writes that the API server refused."
        )

    def _describe_process(self) -> None:
        build = Gauge(
            "llmtrain_operator_build_info",
            "1; the label has the version.",
            ["version"],
            registry=self.registry,
        )
        build.labels(VERSION).set(1)
        ProcessCollector(registry=self.registry)

    def _start_at_zero(self) -> None:
        """Export the counters by reason from the start: `increase` misses the first value."""
        self._finished.labels(SUCCEEDED, Reason.COMPLETED.value)
        for reason in sorted(FAILURE_REASONS):
            self._finished.labels(FAILED, reason)
            self._failures.labels(reason)
            self._restarts.labels(reason)

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

    def finished(self, succeeded: bool, reason: str) -> None:
        """Count a job that ended."""
        self._finished.labels(SUCCEEDED if succeeded else FAILED, reason_label(reason)).inc()

    def failed(self, reason: str) -> None:
        """Count a failure of an attempt."""
        self._failures.labels(reason_label(reason)).inc()

    def restarted(self, reason: str) -> None:
        """Count a restart after a failure with this reason."""
        self._restarts.labels(reason_label(reason)).inc()


class _GpuSecondsCollector(Collector):
    def __init__(self, gpu_seconds: GpuSeconds):
        self._gpu_seconds = gpu_seconds

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the sums up to now."""
        text = "GPUs of jobs times seconds, by what the GPUs did."
        family = CounterMetricFamily("llmtrain_operator_gpu_seconds", text, labels=["state"])
        for use, seconds in self._gpu_seconds.totals().items():
            family.add_metric([use], seconds)
        yield family
