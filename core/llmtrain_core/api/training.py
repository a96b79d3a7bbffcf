"""Section `training` of a job: steps, batch, optimizer and gradient synchronization."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Rule, list_set


class Optimizer(ApiModel):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    """The algorithm."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Term added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay; not applied to norms."""
    gradient_clip_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Gradients are scaled down to this global norm."""


class Schedule(ApiModel):
    """Learning rate over the run: linear warm-up, then decay."""

    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate as a share of the peak."""


class DiLoCo(ApiModel):
    """Outer updates of copies that train apart (DiLoCo, arXiv:2311.08105)."""

    inner_steps: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Optimizer steps that every copy takes by itself between two outer updates."""
    outer_learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.7
    """Rate of the outer update, which is SGD with Nesterov momentum."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the outer update."""
    delay_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Steps that training goes on while an outer update crosses the network; 0: it is waited for.
    A late update is mixed in half and half (Streaming DiLoCo, arXiv:2501.18512)."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.delaySteps < self.innerSteps",
            "delaySteps must be less than innerSteps",
            ".delaySteps",
            lambda self: self.delay_steps < self.inner_steps,
        ),
    )


class GradientSync(ApiModel):
    """How gradients cross the slow dimension, between the copies of parallelism.replicate."""

    compression: Literal["none", "bf16", "int8"] = "none"
    """Numbers that cross: as they are, in 16 bits, or in 8 bits with a scale for every 256 and the
    rounding error added to the next ones (error feedback)."""
    mode: Literal["every-step", "diloco"] = "every-step"
    """Synchronise every step, or by outer updates (DiLoCo, arXiv:2311.08105)."""
    diloco: DiLoCo | None = None
    """Outer updates; the defaults when absent."""
    copies_per_rack: Annotated[int, Field(ge=1, le=65536)] = 1
    """Neighbouring copies that sit close together. With more than one, gradients are summed inside
    a rack first, so that each copy sends only its part to the other racks (hierarchical)."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.diloco) || self.mode == 'diloco'",
            "diloco needs mode diloco",
            ".diloco",
            lambda self: self.diloco is None or self.mode == "diloco",
        ),
    )

    @property
    def outer(self) -> DiLoCo | None:
        """The outer updates with defaults applied; None where copies are alike after every step."""
        return (self.diloco or DiLoCo()) if self.mode == "diloco" else None


class CollectiveProbe(ApiModel):
    """All-reduces of 4 KiB and 16 MiB in every parallel group, between two steps."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Steps from one to the next."""


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The products of a layer, by their usual names."""


class Lora(ApiModel):
    """Low-rank adapters beside frozen weights (Hu et al., arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Width of an adapter."""
    alpha: Annotated[float, Field(gt=0, le=65536)] = 16.0
    """An adapter's output is scaled by alpha / rank."""
    targets: Annotated[list[Projection], Field(min_length=1, max_length=7), list_set()] = Field(
        default=["q_proj", "v_proj"]
    )
    """Products of every layer that get an adapter."""
    merge: bool = False
    """After the last step, also write the base's weights with the adapters added in, as a
    checkpoint under merged/ in checkpoint.uri."""


class Training(ApiModel):
    """How to train: exactly one of steps and tokens says how long."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Number of optimizer steps."""
    tokens: Annotated[int, Field(ge=1, le=1_000_000_000_000_000)] | None = None
    """Number of tokens; rounded up to whole steps."""
    global_batch_size: Annotated[int, Field(ge=1, le=16_777_216)]
    """Sequences of one optimizer step over all ranks."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1
    """Sequences of one forward pass on one data rank."""
    precision: Literal["float64", "float32", "bfloat16"] = "bfloat16"
    """Type of compute; bfloat16 keeps float32 weights and optimizer state."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """The optimizer; AdamW with its defaults when absent."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning-rate schedule; cosine without warm-up when absent."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    """Seed of weights and of the order of data."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Which activations are computed anew in the backward pass."""
    compile: bool = False
    """Compile blocks with torch.compile."""
    gradient_sync: GradientSync = Field(default_factory=GradientSync)
    """How gradients cross the slow dimension."""
    collective_probe: CollectiveProbe | None = None
    """Measure the network between steps, without waiting for slow ranks; off when absent."""
    lora: Lora | None = None
    """Train adapters instead of the weights of model.initFrom, which stay as they are."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.steps) != has(self.tokens)",
            "set exactly one of steps and tokens",
            holds=lambda self: (self.steps is None) != (self.tokens is None),
        ),
        Rule(
            "self.globalBatchSize % self.microBatchSize == 0",
            "globalBatchSize must be a multiple of microBatchSize",
            ".globalBatchSize",
            lambda self: self.global_batch_size % self.micro_batch_size == 0,
        ),
    )
