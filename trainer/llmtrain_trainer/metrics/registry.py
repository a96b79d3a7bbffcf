"""The pod's Prometheus metrics, updated from the reports of its ranks.

Job, namespace, node and rack are labels of the scrape target. Metrics of the whole job (loss,
tokens, MFU, checkpoints) are exported only by the pod of rank 0, so that sums over pods are right.
Metrics of a rank are exported by every pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from llmtrain_core.plan.network.communication import bus_factor
from llmtrain_trainer.metrics.devices import DeviceName, DeviceUse
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    CollectiveSample,
    ProbeReport,
    ProbeSample,
    StepReport,
)

_STEP = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_COLLECTIVE = tuple(20e-6 * 4**power for power in range(10))
"""20 microseconds .. 5 seconds, coarse: every bucket is a line per group and operation."""
_CHECKPOINT = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a tenth of the lines, not needed


@dataclass(frozen=True, slots=True)
class _Factory:
    """Creates metrics in one registry."""

    registry: CollectorRegistry

    def histogram(
        self, name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(
            f"llmtrain_{name}", text, list(labels), buckets=buckets, registry=self.registry
        )

    def gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"llmtrain_{name}", text, list(labels), registry=self.registry)

    def counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"llmtrain_{name}", text, list(labels), registry=self.registry)


class _StepMetrics:
    """Metrics of every rank's steps and collectives, and of the network probe."""

    def __init__(self, new: _Factory) -> None:
        by_group_and_op = ("group", "op")
        self.step = new.histogram("step_seconds", "Optimizer step of a rank.", (), _STEP)
        self.phase = new.histogram(
            "step_phase_seconds", "Part of an optimizer step of a rank.", ("phase",), _STEP
        )
        self.collective = new.histogram(
            "collective_seconds",
            "One collective of a sampled step, including waiting.",
            by_group_and_op,
            _COLLECTIVE,
        )
        self.wait = new.histogram(
            "collective_wait_seconds",
            "Part of a collective before the last rank arrived.",
            ("group",),
            _COLLECTIVE,
        )
        self.straggler = new.gauge(
            "straggler_score",
            "Speed of a rank relative to the fastest with the same work.",
            ("gpu",),
        )
        self.nbytes = new.counter(
            "collective_bytes",
            "Payload of collectives in sampled steps, per rank.",
            by_group_and_op,
        )
        self.bandwidth = new.gauge(
            "bus_bandwidth_bytes_per_second",
            "Bus bandwidth in the last sampled step.",
            by_group_and_op,
        )
        self.probe = new.gauge(
            "probe_seconds",
            "All-reduce of fixed size between steps, without waiting.",
            ("group", "size"),
        )
        self.probe_bandwidth = new.gauge(
            "probe_bus_bandwidth_bytes_per_second",
            "Bus bandwidth of the largest all-reduce of the network probe.",
            ("group",),
        )


class _DeviceMetrics:
    """Metrics of the pod's devices."""

    def __init__(self, new: _Factory) -> None:
        self.use = new.gauge(
            "gpu_utilization_ratio",
            "Share of time in which the device was busy.",
            ("gpu", "source"),
        )
        self.activity = new.gauge(
            "gpu_activity_ratio", "Share of a unit's time or peak rate.", ("gpu", "unit")
        )
        self.energy = new.counter("gpu_energy_joules", "Energy used by a GPU.", ("gpu",))
        self.info = new.gauge(
            "gpu_info",
            "1, with the labels of a GPU in dcgm-exporter.",
            ("gpu", "UUID", "modelName"),
        )
        self.memory = new.gauge("gpu_memory_bytes", "Memory by kind.", ("gpu", "kind"))


class _JobMetrics:
    """Metrics of the whole job, updated in the pod of rank 0 only."""

    def __init__(self, new: _Factory) -> None:
        self.mfu = new.gauge("mfu_ratio", "Model FLOPs over peak FLOPs.", ("convention",))
        self.tokens = new.counter("tokens", "Tokens trained on, over all ranks.")
        self.loss = new.gauge("loss", "Training loss of the last step, nats per token.")
        self.grad_norm = new.gauge("grad_norm", "Global gradient norm before clipping.")
        self.checkpoint = new.histogram(
            "checkpoint_seconds", "Time to write a checkpoint.", ("phase",), _CHECKPOINT
        )
        self.failed_saves = new.counter(
            "checkpoint_failures", "Checkpoints that could not be written."
        )
        self.restarts = new.counter("restarts", "Restarts of all ranks in their pods.")
        self.last_saved = new.gauge(
            "checkpoint_last_step", "Step of the newest complete checkpoint."
        )


class TrainingMetrics:
    """All metrics of a pod; docs/trainer.md lists their names and meaning."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new = _Factory(self.registry)
        self._steps, self._devices, self._job = (
            _StepMetrics(new),
            _DeviceMetrics(new),
            _JobMetrics(new),
        )
        self._probed_step = 0
        self._slowest_probes: dict[tuple[str, int], ProbeSample] = {}
        self._joules: dict[int, float] = {}
        self._sample_names: dict[tuple[str, ...], str] = {}

    def observe_rank_step(self, report: StepReport, gpu: int) -> None:
        """Record a step of a local rank."""
        self._steps.step.observe(report.seconds)
        for phase, seconds in report.phases.items():
            self._steps.phase.labels(phase).observe(seconds)
        for sample in report.collectives:
            self._observe_collective(sample)
        if report.straggler_score is not None:
            self._steps.straggler.labels(str(gpu)).set(report.straggler_score)

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
            self._steps.probe.labels(slowest.group, str(slowest.nbytes)).set(slowest.seconds)
            if slowest.nbytes == largest:
                moved = slowest.nbytes * bus_factor("all_reduce", slowest.group_size)
                self._steps.probe_bandwidth.labels(slowest.group).set(moved / slowest.seconds)

    def observe_job_step(self, report: StepReport, mfu: Mapping[str, float]) -> None:
        """Record a step of the job."""
        self._job.tokens.inc(report.tokens)
        self._job.loss.set(report.loss)
        self._job.grad_norm.set(report.grad_norm)
        for convention, ratio in mfu.items():
            self._job.mfu.labels(convention).set(ratio)

    def observe_checkpoint(self, report: CheckpointReport) -> None:
        """Record a complete checkpoint of the job."""
        self._job.last_saved.set(report.step)
        for phase, seconds in report.seconds.items():
            self._job.checkpoint.labels(phase).observe(seconds)

    def observe_failed_save(self) -> None:
        """Count a checkpoint that could not be written."""
        self._job.failed_saves.inc()

    def observe_restart(self) -> None:
        """Count a restart in place."""
        self._job.restarts.inc()

    def observe_devices(self, source: str, uses: Iterable[DeviceUse]) -> None:
        """Set the state of the devices."""
        for use in uses:
            self._devices.use.labels(str(use.gpu), source).set(use.ratio)
            for kind, nbytes in use.memory.items():
                self._devices.memory.labels(str(use.gpu), kind).set(nbytes)
            for unit, ratio in use.activity.items():
                self._devices.activity.labels(str(use.gpu), unit).set(ratio)
            if use.joules is not None:
                before = self._joules.get(use.gpu, use.joules)
                self._devices.energy.labels(str(use.gpu)).inc(max(0.0, use.joules - before))
                self._joules[use.gpu] = use.joules

    def set_device_names(self, names: Iterable[DeviceName]) -> None:
        """Set the identity of each device, to join with metrics of other exporters."""
        for index, name in enumerate(names):
            self._devices.info.labels(str(index), name.uuid, name.model).set(1)

    def exposition(self) -> bytes:
        """Return the metrics in the Prometheus text format, exactly as prometheus-client does.

        prometheus-client formats the name and labels of every sample in every scrape, which takes
        half of its time. Here they are formatted once.
        """
        lines = []
        for metric in self.registry.collect():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            lines.append(f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n")
            for sample in metric.samples:
                key = (sample.name, *sample.labels.values())
                sample_name = self._sample_names.get(key)
                if sample_name is None:
                    sample_name = self._sample_names[key] = _name_with_labels(sample)
                lines.append(f"{sample_name} {_number(sample.value)}\n")
        return "".join(lines).encode()

    def _observe_collective(self, sample: CollectiveSample) -> None:
        self._steps.nbytes.labels(sample.group, sample.op).inc(sample.nbytes)
        for seconds in sample.seconds:
            self._steps.collective.labels(sample.group, sample.op).observe(seconds)
        for seconds in sample.waits:
            self._steps.wait.labels(sample.group).observe(seconds)
        transfer = sum(sample.seconds) - sum(sample.waits)
        if transfer > 0:
            moved = sample.nbytes * bus_factor(sample.op, sample.group_size)
            self._steps.bandwidth.labels(sample.group, sample.op).set(moved / transfer)


def _name_with_labels(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def _number(value: float) -> str:
    """Return a number as Go formats it, which below a million is the same as in Python."""
    if 0 <= value < 1e6:
        return repr(float(value))
    return floatToGoString(value)  # type: ignore[no-untyped-call, no-any-return]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
