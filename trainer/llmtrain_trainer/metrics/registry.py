"""The pod's Prometheus metrics, updated from the reports of its ranks.

Job, namespace, node and the domains of the node are labels of the scrape target. Metrics of the
whole job (loss, tokens, MFU, checkpoints) are exported only by the pod of rank 0, so that sums and
averages over pods are right. Metrics of a rank are exported by every pod.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, ProcessCollector

from llmtrain_core.images import VERSION
from llmtrain_core.layout import Dimension, Layout
from llmtrain_core.plan.network.communication import bus_factor
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.metrics.devices import DeviceName, DeviceUse
from llmtrain_trainer.metrics.exposition import Exposition
from llmtrain_trainer.metrics.families import (
    DeviceFamilies,
    FamilyFactory,
    JobFamilies,
    PodFamilies,
    StepFamilies,
)
from llmtrain_trainer.metrics.recent_calls import RecentCalls
from llmtrain_trainer.runtime.pod_env import MetricsDetail
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    CollectiveSample,
    EvaluationReport,
    ProbeReport,
    ProbeSample,
    StepReport,
)


class TrainingMetrics:
    """All metrics of a pod; docs/trainer.md lists their names and meaning."""

    def __init__(self, detail: MetricsDetail = "basic") -> None:
        self.registry = CollectorRegistry()
        new = FamilyFactory(self.registry, detail)
        self._pod, self._steps = PodFamilies(new), StepFamilies(new)
        self._devices, self._job = DeviceFamilies(new), JobFamilies(new)
        self._recent_calls = RecentCalls(self.registry)
        self._exposition = Exposition(self.registry)
        self._probed_step = 0
        self._slowest_probes: dict[tuple[str, int], ProbeSample] = {}
        self._joules: dict[int, float] = {}
        ProcessCollector(registry=self.registry)
        # torch itself is not imported yet
        self._pod.build().labels(VERSION, _torch_version()).set(1)

    def set_ranks(self, ranks: Sequence[int], layout: Layout) -> None:
        """Set the coordinates of the rank on every GPU."""
        for gpu, rank in enumerate(ranks):
            self._pod.rank().labels(str(gpu), str(rank), *_coordinates(layout, rank)).set(1)

    def start_job_counters(self) -> None:
        """Start the counters of rare events at 0: their rates then include the first event."""
        self._job.failed_saves()
        self._job.restarts()

    def set_job(self, run: RunConfig) -> None:
        """Set the properties of the job."""
        self._job.info().labels(run.namespace, str(run.layout), run.model).set(1)

    def set_total_steps(self, steps: int) -> None:
        """Set the number of steps of the whole job."""
        self._job.total_steps().set(steps)

    def observe_rank_step(self, report: StepReport, gpu: int) -> None:
        """Record a step of a local rank."""
        self._steps.step().observe(report.seconds)
        for phase, seconds in report.phases.items():
            self._steps.phase().labels(phase).observe(seconds)
        if report.straggler_score is None:
            return
        self._steps.sampled().inc()
        self._steps.straggler().labels(str(gpu)).set(report.straggler_score)
        for sample in report.collectives:
            tensors = sample.without_scalars()
            self._observe_waits(tensors, "tensor")
            self._observe_waits(sample.scalars(), "scalar")
            self._observe_collective(tensors)

    def observe_network_probe(self, report: ProbeReport) -> None:
        """Record a network probe of a local rank: of groups with one name, the slowest counts."""
        if report.step != self._probed_step:
            self._probed_step, self._slowest_probes = report.step, {}
        largest = max((each.nbytes for each in report.samples), default=0)
        for sample in report.samples:
            key = (sample.group, sample.nbytes)
            slowest = max(
                sample, self._slowest_probes.get(key, sample), key=lambda each: each.seconds
            )
            self._slowest_probes[key] = slowest
            self._steps.probe().labels(slowest.group, str(slowest.nbytes)).set(slowest.seconds)
            if slowest.nbytes == largest:
                moved = slowest.nbytes * bus_factor("all_reduce", slowest.group_size)
                self._steps.probe_bandwidth().labels(slowest.group).set(moved / slowest.seconds)

    def observe_job_step(
        self, report: StepReport, mfu: Mapping[str, float], eta_seconds: float | None
    ) -> None:
        """Record a step of the job."""
        self._job.step().set(report.step)
        self._job.last_step().set(time.time())
        self._job.tokens().inc(report.tokens)
        self._job.loss().set(report.loss)
        self._job.grad_norm().set(report.grad_norm)
        self._job.learning_rate().set(report.learning_rate)
        if eta_seconds is not None:
            self._job.eta().set(eta_seconds)
        for convention, ratio in mfu.items():
            self._job.mfu().labels(convention).set(ratio)

    def observe_evaluation(self, report: EvaluationReport) -> None:
        """Record a held-out loss of the job."""
        self._job.held_out_loss().labels(report.when).set(report.score.loss)

    def observe_checkpoint(self, report: CheckpointReport) -> None:
        """Record a complete checkpoint of the job."""
        self._job.last_saved().set(report.step)
        for phase, seconds in report.seconds.items():
            self._job.checkpoint().labels(phase).observe(seconds)

    def observe_failed_save(self) -> None:
        """Count a checkpoint that could not be written."""
        self._job.failed_saves().inc()

    def observe_restart(self) -> None:
        """Count a restart in place."""
        self._job.restarts().inc()

    def observe_devices(self, source: str, uses: Iterable[DeviceUse]) -> None:
        """Set the state of the devices."""
        for use in uses:
            gpu = str(use.gpu)
            self._devices.use().labels(gpu, source).set(use.ratio)
            for kind, nbytes in use.memory.items():
                self._devices.memory().labels(gpu, kind).set(nbytes)
            for unit, ratio in use.activity.items():
                self._devices.activity().labels(gpu, unit).set(ratio)
            if use.joules is not None:
                before = self._joules.get(use.gpu, use.joules)
                self._devices.energy().labels(gpu).inc(max(0.0, use.joules - before))
                self._joules[use.gpu] = use.joules

    def set_device_names(self, names: Iterable[DeviceName]) -> None:
        """Set the identity of each device, to join with metrics of other exporters."""
        for index, name in enumerate(names):
            self._devices.info().labels(str(index), name.uuid, name.model).set(1)

    def exposition(self) -> bytes:
        """Return the metrics in the Prometheus text format, exactly as prometheus-client does."""
        return self._exposition.text()

    def _observe_waits(self, sample: CollectiveSample, payload: str) -> None:
        """Record waits: ranks also wait for each other in the sum of a loss."""
        for seconds in sample.waits:
            self._steps.wait().labels(sample.group, payload).observe(seconds)

    def _observe_collective(self, sample: CollectiveSample) -> None:
        """Record calls whose durations depend on the payload."""
        labels = (sample.group, sample.op)
        if sample.payloads:
            self._steps.nbytes().labels(*labels).inc(sample.nbytes)
        if sample.seconds:
            self._recent_calls.add(*labels, sample.seconds)
            durations = self._steps.collective().labels(*labels)
            for seconds in sample.seconds:
                durations.observe(seconds)
        transfer = sum(sample.seconds) - sum(sample.waits)
        if transfer > 0:
            moved = sample.nbytes * bus_factor(sample.op, sample.group_size)
            self._steps.bandwidth().labels(*labels).set(moved / transfer)


_DIMENSIONS: tuple[Dimension, ...] = ("tensor", "pipeline", "data", "context", "replicate")
"""Dimensions in the order of the labels of `rank_info`."""


def _coordinates(layout: Layout, rank: int) -> tuple[str, ...]:
    """Return the values of the labels of `rank_info`: five dimensions, and the expert rank."""
    position = layout.coordinates(rank)
    expert = layout.group("ep")
    numbers = (*(position[each] for each in _DIMENSIONS), rank // expert.stride % expert.size)
    return tuple(map(str, numbers))


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"
