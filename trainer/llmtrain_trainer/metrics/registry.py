"""The pod's Prometheus metrics, filled from the ranks' reports.

Job, namespace, node and rack are labels of the scrape target. What belongs to the whole job (loss,
tokens, utilisation of FLOPs, checkpoints) is exported by the pod of rank 0 alone, so that sums over
pods are right; what belongs to a rank by every pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
from llmtrain_trainer.metrics.gpu_use import DeviceName, DeviceUse
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    CollectiveSample,
    ProbeReport,
    ProbeSample,
    StepReport,
)

_STEP = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_COLLECTIVE = tuple(20e-6 * 4**power for power in range(10))
"""20 microseconds .. 5 seconds, coarse: every bucket is a line for each group and operation."""
_CHECKPOINT = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a tenth of the lines, read by nobody


class TrainingMetrics:
    """Names and meaning: docs/trainer.md."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._heads: dict[tuple[str, ...], str] = {}

        def histogram(
            name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]
        ) -> Histogram:
            return Histogram(
                f"llmtrain_{name}", text, list(labels), buckets=buckets, registry=registry
            )

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"llmtrain_{name}", text, list(labels), registry=registry)

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"llmtrain_{name}", text, list(labels), registry=registry)

        pair = ("group", "op")
        self._step = histogram("step_seconds", "Optimizer step of a rank.", (), _STEP)
        self._phase = histogram(
            "step_phase_seconds", "Part of an optimizer step of a rank.", ("phase",), _STEP
        )
        self._collective = histogram(
            "collective_seconds",
            "One collective of a sampled step, waiting included.",
            pair,
            _COLLECTIVE,
        )
        self._wait = histogram(
            "collective_wait_seconds",
            "Part of a collective before the last rank came.",
            ("group",),
            _COLLECTIVE,
        )
        self._straggler = gauge(
            "straggler_score",
            "Pace of a rank over that of the fastest with the same work.",
            ("gpu",),
        )
        self._bytes = counter(
            "collective_bytes", "Payload of collectives in sampled steps, per rank.", pair
        )
        self._bandwidth = gauge(
            "bus_bandwidth_bytes_per_second", "Bus bandwidth in the last sampled step.", pair
        )
        self._probe = gauge(
            "probe_seconds",
            "All-reduce of fixed size between steps, waiting left out.",
            ("group", "size"),
        )
        self._probe_bandwidth = gauge(
            "probe_bus_bandwidth_bytes_per_second",
            "Bus bandwidth of the largest of them.",
            ("group",),
        )
        self._probed = 0
        self._slowest: dict[tuple[str, int], ProbeSample] = {}
        self._use = gauge("gpu_utilization_ratio", "Share of time at work.", ("gpu", "source"))
        self._activity = gauge(
            "gpu_activity_ratio", "Share of a unit's time or peak rate.", ("gpu", "unit")
        )
        self._energy = counter("gpu_energy_joules", "Energy of a GPU.", ("gpu",))
        self._joules: dict[int, float] = {}
        self._info = gauge(
            "gpu_info",
            "1, with the labels that dcgm-exporter gives a GPU.",
            ("gpu", "UUID", "modelName"),
        )
        self._memory = gauge("gpu_memory_bytes", "Memory by kind.", ("gpu", "kind"))
        self._mfu = gauge("mfu_ratio", "Model FLOPs over peak FLOPs.", ("convention",))
        self._tokens = counter("tokens", "Tokens trained on, over all ranks.")
        self._loss = gauge("loss", "Training loss of the last step, nats per token.")
        self._norm = gauge("grad_norm", "Global gradient norm before clipping.")
        self._checkpoint = histogram(
            "checkpoint_seconds", "Writing of a checkpoint.", ("phase",), _CHECKPOINT
        )
        self._unsaved = counter("checkpoint_failures", "Checkpoints that could not be written.")
        self._restarts = counter("restarts", "Restarts of all ranks in their pods.")
        self._saved = gauge("checkpoint_last_step", "Step of the newest complete checkpoint.")

    def observe_rank_step(self, report: StepReport, gpu: int) -> None:
        """Count a step of a local rank."""
        self._step.observe(report.seconds)
        for phase, seconds in report.phases.items():
            self._phase.labels(phase).observe(seconds)
        for sample in report.collectives:
            self._observe_collective(sample)
        if report.straggler_score is not None:
            self._straggler.labels(str(gpu)).set(report.straggler_score)

    def observe_probe(self, report: ProbeReport) -> None:
        """Take a probe of a local rank; of a pod's groups of one kind the slowest counts."""
        if report.step != self._probed:
            self._probed, self._slowest = report.step, {}
        largest = max((each.nbytes for each in report.samples), default=0)
        for sample in report.samples:
            key = (sample.group, sample.nbytes)
            found = max(sample, self._slowest.get(key, sample), key=lambda each: each.seconds)
            self._slowest[key] = found
            self._probe.labels(found.group, str(found.nbytes)).set(found.seconds)
            if found.nbytes == largest:
                moved = found.nbytes * bus_factor("all_reduce", found.group_size)
                self._probe_bandwidth.labels(found.group).set(moved / found.seconds)

    def observe_job_step(self, report: StepReport, mfu: Mapping[str, float]) -> None:
        """Count a step of the job: rank 0 only."""
        self._tokens.inc(report.tokens)
        self._loss.set(report.loss)
        self._norm.set(report.grad_norm)
        for convention, ratio in mfu.items():
            self._mfu.labels(convention).set(ratio)

    def observe_checkpoint(self, report: CheckpointReport) -> None:
        """Count a checkpoint of the job: rank 0 only."""
        self._saved.set(report.step)
        for phase, seconds in report.seconds.items():
            self._checkpoint.labels(phase).observe(seconds)

    def observe_failed_save(self) -> None:
        """Count a checkpoint that could not be written: rank 0 only."""
        self._unsaved.inc()

    def observe_restart(self) -> None:
        """Count a restart in place of the job: rank 0 only."""
        self._restarts.inc()

    def observe_devices(self, source: str, uses: Iterable[DeviceUse]) -> None:
        """Set the state of the devices."""
        for use in uses:
            self._use.labels(str(use.gpu), source).set(use.ratio)
            for kind, nbytes in use.memory.items():
                self._memory.labels(str(use.gpu), kind).set(nbytes)
            for unit, ratio in use.activity.items():
                self._activity.labels(str(use.gpu), unit).set(ratio)
            if use.joules is not None:
                before = self._joules.get(use.gpu, use.joules)
                self._energy.labels(str(use.gpu)).inc(max(0.0, use.joules - before))
                self._joules[use.gpu] = use.joules

    def name_devices(self, names: Iterable[DeviceName]) -> None:
        """Say which devices these are, for joins with what others measure."""
        for index, name in enumerate(names):
            self._info.labels(str(index), name.uuid, name.model).set(1)

    def exposition(self) -> bytes:
        """Return the Prometheus text format, to the letter what prometheus-client makes of it.

        That one puts names and labels of every sample together anew, in half of the time that a
        scrape takes; here they are put together once.
        """
        lines = []
        for metric in self.registry.collect():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            lines.append(f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n")
            for sample in metric.samples:
                key = (sample.name, *sample.labels.values())
                head = self._heads.get(key)
                if head is None:
                    head = self._heads[key] = _head(sample)
                lines.append(f"{head} {_number(sample.value)}\n")
        return "".join(lines).encode()

    def _observe_collective(self, sample: CollectiveSample) -> None:
        self._bytes.labels(sample.group, sample.op).inc(sample.nbytes)
        for seconds in sample.seconds:
            self._collective.labels(sample.group, sample.op).observe(seconds)
        for seconds in sample.waits:
            self._wait.labels(sample.group).observe(seconds)
        spent = sum(sample.seconds) - sum(sample.waits)
        if spent > 0:
            moved = sample.nbytes * bus_factor(sample.op, sample.group_size)
            self._bandwidth.labels(sample.group, sample.op).set(moved / spent)


def _head(sample: Sample) -> str:
    """Return a sample's name with its labels."""
    labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def _number(value: float) -> str:
    """Return a number as Go writes it; below a million that is as Python does."""
    if 0 <= value < 1e6:
        return repr(float(value))
    return floatToGoString(value)  # type: ignore[no-untyped-call, no-any-return]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
