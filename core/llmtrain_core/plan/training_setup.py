"""Training setup of a plan: model shape, layout, batch and execution options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal

from llmtrain_core.api.job import Training
from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import Schedule, check_schedule
from llmtrain_core.plan.gradient_sync import EXACT_SYNC, SyncScheme
from llmtrain_core.plan.model.model_shape import ModelShape, shape_of
from llmtrain_core.plan.model.parameters import FsdpUnits, PipelineStage, stage_units, stages
from llmtrain_core.validation.check import Job

Precision = Literal["float64", "float32", "bfloat16", "float8"]
"""Data type of matrix products. float8 keeps the rest in bfloat16 and is for published runs
only."""

COMPUTE_BYTES: Mapping[Precision, int] = MappingProxyType(
    {"float64": 8, "float32": 4, "bfloat16": 2, "float8": 2}
)
"""Bytes of an activation or of a gathered weight."""

MASTER_BYTES: Mapping[Precision, int] = MappingProxyType(
    {"float64": 8, "float32": 4, "bfloat16": 4, "float8": 4}
)
"""Bytes of a stored weight, a reduced gradient and each of the two Adam moments."""

Checkpointing = Literal["none", "selective", "full"]

Sharding = Literal["fsdp2", "zero1", "ddp"]
"""What is sharded over data ranks. fsdp2 (the trainer): weights, gradients and optimizer state.
zero1 (the distributed optimizer of Megatron-LM): only the optimizer state; 16-bit weights and
32-bit gradients are replicated. ddp: nothing."""

Kernels = Literal["fused", "compiled", "eager"]
"""Kernels of operations between products: hand-fused, torch.compile, or one kernel each."""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """All inputs of the step model except the hardware."""

    shape: ModelShape
    layout: Layout
    global_batch: int
    """Sequences of one optimizer step over all ranks."""
    micro_batch: int = 1
    """Sequences of one forward pass on one data rank."""
    precision: Precision = "bfloat16"
    checkpointing: Checkpointing = "none"
    sharding: Sharding = "fsdp2"
    schedule: Schedule = "1F1B"
    chunks: int = 1
    """Model chunks per pipeline rank."""
    kernels: Kernels = "eager"
    recomputed_share: float | None = None
    """Share of a layer's products that the backward pass recomputes, if a published run has another
    policy than the three. Default: 1 for full, else 0."""
    syncs_always: bool = False
    """FSDP reshards weights and reduces gradients in each micro-batch: less memory, more traffic.
    The trainer does so once per step."""
    divides_documents: bool = False
    """Attention stays inside documents. Their lengths are known after the data is prepared, so time
    is planned as if every sequence was one document."""
    flash_attention: bool = True
    """Attention scores are not written to memory, and the masked half is not computed."""
    overlaps_tensor: bool = False
    """Tensor-parallel collectives overlap with products (async TP, user buffers)."""
    overlaps_data: bool = True
    """Collectives of gradients and weights overlap with computation."""
    sync: SyncScheme = EXACT_SYNC
    """Synchronization of model replicas (fsdp2)."""

    def __post_init__(self) -> None:
        """Raise PlanError for an impossible setup."""
        self._check_sizes()
        self._check_batch()
        pipeline = self.layout.pipeline
        check_schedule(self.schedule, pipeline, self.micro_batches, self.chunks)

    def _check_sizes(self) -> None:
        shape, tensor = self.shape, self.layout.tensor
        parts = {
            "heads": shape.heads,
            "kvHeads": shape.kv_heads,
            "ffnSize": shape.ffn_size,
            "sequenceLength": shape.sequence_length // self.layout.context,
        }
        for name, size in parts.items():
            if size % tensor:
                raise PlanError(
                    f"tensor {tensor} does not divide the model's {size} {name}",
                    f"use {nearest_divisor(size, tensor)}",
                )
        if shape.sequence_length % (2 * self.layout.context) and self.layout.context > 1:
            raise PlanError(
                f"context {self.layout.context} does not cut {shape.sequence_length} tokens in"
                " equal halves",
                f"use {nearest_divisor(shape.sequence_length // 2, self.layout.context)}",
            )
        self._check_experts()
        slots = self.layout.pipeline * self.chunks
        if slots > shape.layers:
            raise PlanError(
                f"{slots} pipeline chunks for {shape.layers} layers",
                f"use at most {shape.layers} (pipeline x virtualStages)",
            )

    def _check_experts(self) -> None:
        shape, expert, ranks = self.shape, self.layout.expert, self.shard_ranks
        for what, size in (("experts", shape.experts), ("data x context ranks", ranks)):
            if size % expert:
                raise PlanError(
                    f"expert {expert} does not divide the {size} {what}",
                    f"use {nearest_divisor(size, expert)}",
                )
        if shape.experts > 1 and self.sharding == "fsdp2" and shape.hidden_size % (ranks // expert):
            raise PlanError(
                f"{ranks // expert} ranks cannot shard the {shape.hidden_size} columns of an expert"
                " evenly",
                "use degrees with which (data x context / expert) divides hiddenSize",
            )

    def _check_batch(self) -> None:
        share = self.replicas * self.micro_batch
        if self.micro_batch < 1 or self.global_batch < 1 or self.global_batch % share:
            above = max(share, -(-self.global_batch // max(1, share)) * share)
            raise PlanError(
                f"a batch of {self.global_batch} sequences cannot be split into micro-batches of"
                f" {self.micro_batch} over {self.replicas} data ranks",
                f"use a multiple of {share}, for example {above}",
            )

    @classmethod
    def of(cls, job: Job) -> TrainingSetup:
        """Return the setup of a valid job. Raises PlanError for a third-party trainer."""
        training = job.spec.training
        if job.architecture is None or training is None:
            raise PlanError(
                "the job names no model or training, so there is nothing to plan",
                "set spec.model and spec.training, or use --model and --tokens",
            )
        parallelism = job.spec.parallelism
        return cls(
            shape=_adapted(shape_of(job.architecture), training),
            layout=job.layout,
            global_batch=training.global_batch_size,
            micro_batch=training.micro_batch_size,
            precision=training.precision,
            checkpointing=training.activation_checkpointing,
            schedule=parallelism.pipeline_schedule,
            chunks=parallelism.virtual_stages,
            kernels="compiled" if training.compile else "eager",
            sync=SyncScheme.of(training),
            divides_documents=job.spec.data is not None and job.spec.data.divides_documents,
        )

    @property
    def replicas(self) -> int:
        """Number of ranks with different data."""
        return self.layout.data * self.layout.replicate

    @property
    def micro_batches(self) -> int:
        """Forward passes of one step."""
        return self.global_batch // (self.replicas * self.micro_batch)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch * self.shape.sequence_length

    @property
    def local_tokens(self) -> int:
        """Tokens of one micro-batch that one tensor group works on."""
        return self.micro_batch * self.shape.sequence_length // self.layout.context

    @property
    def masks_pairs(self) -> bool:
        """Whether attention takes a mask of all pairs of a sequence.

        In bfloat16, a kernel of variable length computes the pairs inside documents only.
        """
        return self.divides_documents and self.precision not in ("bfloat16", "float8")

    @property
    def stages(self) -> tuple[PipelineStage, ...]:
        """Stage of each pipeline rank."""
        if self.layout.pipeline == 1:
            return stages(self.shape.layers, 1)
        return stages(self.shape.layers, self.layout.pipeline, self.schedule, self.chunks)

    @property
    def kinds(self) -> tuple[int, ...]:
        """The first pipeline rank of each kind of stage.

        Stages differ in layers, model ends and neighbours. Of equal stages, the first rank keeps
        the most micro-batches in flight.
        """
        return _kinds(self.stages)

    def units(self, stage: PipelineStage) -> FsdpUnits:
        """Return the FSDP units of one rank of a stage."""
        return stage_units(self.shape, stage, self.layout.tensor, self.layout.expert)

    @property
    def shard_ranks(self) -> int:
        """Number of ranks over which FSDP shards: data and context ranks."""
        return self.layout.data * self.layout.context

    @property
    def recomputed(self) -> float:
        """Share of a layer's products that the backward pass recomputes."""
        if self.recomputed_share is not None:
            return self.recomputed_share
        return 1.0 if self.checkpointing == "full" else 0.0


@cache
def _kinds(stages: tuple[PipelineStage, ...]) -> tuple[int, ...]:
    last = len(stages) - 1
    kinds: dict[tuple[PipelineStage, bool, bool], int] = {}
    for rank, stage in enumerate(stages):
        kinds.setdefault((stage, rank == 0, rank == last), rank)
    return tuple(kinds.values())


def _adapted(shape: ModelShape, training: Training) -> ModelShape:
    """Return the shape with the adapters of the job."""
    lora = training.lora
    if lora is None:
        return shape
    return shape.with_adapters(lora.rank, lora.targets)


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` that is closest to `wanted`; the smaller of two."""
    divisors = [d for d in range(1, number + 1) if number % d == 0] if number < 10**6 else [1]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
