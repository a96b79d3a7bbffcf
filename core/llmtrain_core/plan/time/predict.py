"""Estimate size, memory and time of a run with a given layout, in under 1 ms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain_core.pipeline_schedules import bubble_fraction
from llmtrain_core.plan.constants import calibrated_type_of, constants_of, fitted_type_of
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.memory.training_memory import Memory, memory
from llmtrain_core.plan.model.flops import Convention, training_flops_per_token
from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.plan.network.communication import Group
from llmtrain_core.plan.time.step_time import StepTime, collective_seconds, step_time
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job

SHOWN: Convention = "causal-attention"
"""Convention of `mfu` and `total_flops`, the same as the trainer's status shows."""


@dataclass(frozen=True, slots=True)
class Outline:
    """Estimates that do not depend on the GPU type."""

    setup: TrainingSetup
    tokens: int
    memory: Memory

    @property
    def gpus(self) -> int:
        """GPUs of the run."""
        return self.setup.layout.world_size

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return count_parameters(self.setup.shape).total

    @property
    def learning(self) -> int:
        """Trainable parameters: all, or those of the adapters."""
        return count_parameters(self.setup.shape).learning

    @property
    def active_parameters(self) -> int:
        """Parameters used for one token; fewer than all with experts."""
        return count_parameters(self.setup.shape).active

    def flops_per_token(self, convention: Convention) -> int:
        """Return FLOPs of one token in a convention."""
        return training_flops_per_token(self.setup.shape, convention)

    @property
    def total_flops(self) -> int:
        """FLOPs of the whole run."""
        return self.flops_per_token(SHOWN) * self.tokens

    @property
    def bubble(self) -> float:
        """Share of a step in which the pipeline is idle, without communication."""
        setup = self.setup
        return bubble_fraction(
            setup.schedule, setup.layout.pipeline, setup.micro_batches, setup.chunks
        )


@dataclass(frozen=True, slots=True)
class Prediction(Outline):
    """Estimates of a run on one GPU type."""

    hardware: Accelerator
    time: StepTime
    collectives: Mapping[Group, float]
    """Seconds of a step in collectives, by group, whether they overlap with computation or not."""
    assumptions: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all ranks."""
        return self.setup.tokens_per_step / self.time.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization, relative to the peak of the setup's precision."""
        peak = self.hardware.peak(self.setup.precision) * self.gpus
        return self.flops_per_token(SHOWN) * self.tokens_per_second / peak

    @property
    def seconds(self) -> float:
        """Training time in seconds, without failures and checkpoints."""
        return self.tokens / self.tokens_per_second

    @property
    def days(self) -> float:
        """Training time in days, without failures and checkpoints."""
        return self.seconds / 86400


def tokens_of(job: Job, setup: TrainingSetup) -> int:
    """Return the number of training tokens of a job, in whole steps."""
    return max(1, job.total_steps) * setup.tokens_per_step


def outline(setup: TrainingSetup, tokens: int) -> Outline:
    """Return the estimates of a run on an unknown GPU."""
    return Outline(setup, tokens, memory(setup))


def predict(
    setup: TrainingSetup,
    hardware: Accelerator,
    tokens: int,
    slowed: Mapping[Group, float] | None = None,
) -> Prediction:
    """Return memory and time of a setup.

    `slowed` is the slowdown of each group by the uplinks of a placement; None if no placement is
    known. Raises PlanError if the GPU does not support the precision.
    """
    constants = constants_of(hardware.name)
    return Prediction(
        setup=setup,
        tokens=tokens,
        memory=memory(setup, int(hardware.memory.value)),
        hardware=hardware,
        time=step_time(setup, hardware, constants, slowed),
        collectives=collective_seconds(setup, hardware, constants, slowed),
        assumptions=_assumptions(setup, hardware, placed=slowed is not None),
    )


def _assumptions(setup: TrainingSetup, hardware: Accelerator, *, placed: bool) -> tuple[str, ...]:
    notes = [
        f"mfu and totalFlops use the {SHOWN} convention and exclude recomputation",
        _basis(hardware.name),
        f"kernels: {setup.kernels}; sharding: {setup.sharding}",
    ]
    if setup.divides_documents:
        notes.append("attention is planned as if every sequence was one document")
    if not placed:
        notes.append("no placement: rank blocks fill servers in order, and uplinks are not shared")
    if hardware.name.startswith("V100"):
        notes.append("V100 has no bfloat16: its float16 peak is used")
    return tuple(notes)


def _basis(name: str) -> str:
    owner = calibrated_type_of(name)
    if owner == fitted_type_of(name):
        return f"speeds are calibrated on published runs of {owner}"
    return f"no published run of {name}: speeds are scaled from {owner} by the ratio of the peaks"
