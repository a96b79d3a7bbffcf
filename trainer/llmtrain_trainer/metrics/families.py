"""The metric families of a pod: their names, labels and buckets. docs/trainer.md explains them.

A family is registered when it is first used. Until then it is absent from `/metrics`: a zero would
count in averages and minima over pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
)

from llmtrain_trainer.runtime.pod_env import MetricsDetail


def _doubling(first: float, count: int) -> tuple[float, ...]:
    return tuple(first * 2**power for power in range(count))


_STEP = _doubling(0.01, 16)
"""10 milliseconds .. 5 minutes."""
_COLLECTIVE = _doubling(20e-6, 19)
"""20 microseconds .. 5 seconds."""
_CHECKPOINT = _doubling(0.1, 15)
"""100 milliseconds .. 27 minutes."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a tenth of the lines, not needed

Durations = Histogram | Summary
"""Both have a sum and a count; a histogram has many series more."""


@dataclass(frozen=True, slots=True)
class FamilyFactory:
    """Returns functions that register a family in one registry when they are first called."""

    registry: CollectorRegistry
    detail: MetricsDetail

    def histogram(
        self, name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]
    ) -> Callable[[], Histogram]:
        """Return a histogram, whatever the detail."""
        return cache(
            lambda: Histogram(
                f"llmtrain_{name}", text, list(labels), buckets=buckets, registry=self.registry
            )
        )

    def durations(
        self, name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]
    ) -> Callable[[], Durations]:
        """Return a sum and a count; with full detail a histogram."""
        if self.detail == "full":
            return self.histogram(name, text, labels, buckets)
        return cache(
            lambda: Summary(f"llmtrain_{name}", text, list(labels), registry=self.registry)
        )

    def gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Callable[[], Gauge]:
        """Return a gauge."""
        return cache(lambda: Gauge(f"llmtrain_{name}", text, list(labels), registry=self.registry))

    def counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Callable[[], Counter]:
        """Return a counter; its series end in `_total`."""
        return cache(
            lambda: Counter(f"llmtrain_{name}", text, list(labels), registry=self.registry)
        )


class PodFamilies:
    """Families of the pod itself and of its ranks."""

    def __init__(self, new: FamilyFactory) -> None:
        self.build = new.gauge("build_info", "1, with the versions.", ("version", "torch"))
        self.rank = new.gauge(
            "rank_info",
            "1, with the coordinates of the rank on a GPU.",
            ("gpu", "rank", "tp", "pp", "dp", "cp", "rep", "ep"),
        )


class StepFamilies:
    """Families of every rank's steps and collectives, and of the network probe."""

    def __init__(self, new: FamilyFactory) -> None:
        by_group_and_op = ("group", "op")
        self.step = new.histogram("step_seconds", "Optimizer step of a rank.", (), _STEP)
        self.phase = new.durations(
            "step_phase_seconds", "Part of an optimizer step of a rank.", ("phase",), _STEP
        )
        self.straggler = new.gauge(
            "straggler_score",
            "Speed of a rank relative to the fastest with the same work.",
            ("gpu",),
        )
        self.collective = new.durations(
            "collective_seconds",
            "One collective of a sampled step, including waiting, without scalars.",
            by_group_and_op,
            _COLLECTIVE,
        )
        self.wait = new.durations(
            "collective_wait_seconds",
            "Part of a collective of a sampled step before the last rank arrived.",
            ("group", "payload"),
            _COLLECTIVE,
        )
        self.sampled = new.counter("sampled_steps", "Steps whose collectives were measured.")
        self.nbytes = new.counter(
            "sampled_collective_bytes",
            "Payload of collectives in sampled steps, without scalars.",
            by_group_and_op,
        )
        self.bandwidth = new.gauge(
            "bus_bandwidth_bytes_per_second",
            "Bus bandwidth in the last sampled step, without scalars.",
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


class DeviceFamilies:
    """Families of the pod's devices."""

    def __init__(self, new: FamilyFactory) -> None:
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


class JobFamilies:
    """Families of the whole job, used in the pod of rank 0 only."""

    def __init__(self, new: FamilyFactory) -> None:
        self.info = new.gauge(
            "job_info", "1, with properties of the job.", ("namespace", "layout", "model")
        )
        self.step = new.gauge("step", "Steps done.")
        self.total_steps = new.gauge("total_steps", "Steps of the whole job.")
        self.eta = new.gauge("eta_seconds", "Time that the remaining steps take.")
        self.last_step = new.gauge("last_step_timestamp_seconds", "Unix time of the last step.")
        self.mfu = new.gauge("mfu_ratio", "Model FLOPs over peak FLOPs.", ("convention",))
        self.tokens = new.counter("tokens", "Real tokens trained on, over all ranks.")
        self.loss = new.gauge("loss", "Training loss of the last step, nats per token.")
        self.held_out_loss = new.gauge(
            "held_out_loss", "Loss on held-out data, nats per token.", ("when",)
        )
        self.grad_norm = new.gauge("grad_norm", "Global gradient norm before clipping.")
        self.learning_rate = new.gauge("learning_rate", "Learning rate of the last step.")
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
