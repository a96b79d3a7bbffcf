"""Sections `training` and `parallelism` of a job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Quantity, Rule, list_set
from llmtrain_core.api.defaults import EVALUATE_TOKENS


class Optimizer(ApiModel):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    """Optimizer algorithm."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the second moment."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Term added to the denominator for numerical stability."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay. Not applied to normalization layers."""
    gradient_clip_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Maximum global norm of the gradients."""


class Schedule(ApiModel):
    """Learning-rate schedule: linear warm-up, then decay."""

    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Number of warm-up steps."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate as a fraction of the peak learning rate."""


class DiLoCo(ApiModel):
    """Outer updates of model replicas that train independently (DiLoCo, arXiv:2311.08105)."""

    inner_steps: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Number of optimizer steps between two outer updates."""
    outer_learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.7
    """Learning rate of the outer optimizer, which is SGD with Nesterov momentum."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the outer optimizer."""
    delay_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Number of steps during which an outer update overlaps with training; 0 blocks until it is
    done. A delayed update is averaged with the current weights (Streaming DiLoCo,
    arXiv:2501.18512)."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.delaySteps < self.innerSteps",
            "delaySteps must be less than innerSteps",
            ".delaySteps",
            lambda self: self.delay_steps < self.inner_steps,
        ),
    )


class GradientSync(ApiModel):
    """Gradient synchronization between the model replicas of parallelism.replicate."""

    compression: Literal["none", "bf16", "int8"] = "none"
    """Compression of gradients: none, bf16, or int8 with one scale per 256 values and error
    feedback."""
    mode: Literal["every-step", "diloco"] = "every-step"
    """Synchronization mode: every-step, or diloco (outer updates, arXiv:2311.08105)."""
    diloco: DiLoCo | None = None
    """Settings of mode diloco. Defaults apply when absent."""
    copies_per_rack: Annotated[int, Field(ge=1, le=65536)] = 1
    """Number of consecutive model replicas in one rack. If greater than 1, gradients are reduced
    inside each rack first, and each replica sends only its part to other racks (hierarchical
    all-reduce)."""

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
        """Settings of mode diloco with defaults applied; None in mode every-step."""
        return (self.diloco or DiLoCo()) if self.mode == "diloco" else None


class Communication(ApiModel):
    """Transfer of gradients in mode every-step. Fields that are set are not tried."""

    autotune: bool = False
    """Try settings in the first steps on a placement, keep the fastest, and use it again for the
    same placement. Also tries the all-reduce with and without copiesPerRack."""
    overlap: bool | None = None
    """Transfer sums during the backward pass, which waits while there are more than two messages.
    Default false."""
    bucket_size: Quantity | None = None
    """Minimum size of a message, which then has the gradients of several layers. Needs overlap.
    Default 0: a message per layer."""
    chunks: Annotated[int, Field(ge=1, le=64)] | None = None
    """Number of parts of a message, each with its own collectives. Default 1."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.bucketSize) || (has(self.overlap) && self.overlap)",
            "bucketSize needs overlap: true",
            ".bucketSize",
            lambda self: self.bucket_size is None or self.overlap is True,
        ),
    )


class CollectiveProbe(ApiModel):
    """Network probe: all-reduces of 4 KiB and 16 MiB in each parallel group, between two steps."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Number of steps between two probes."""


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Linear layers of a transformer block."""


class Lora(ApiModel):
    """Low-rank adapters with frozen base weights (LoRA; Hu et al., arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0, le=65536)] = 16.0
    """Scaling factor: the output of an adapter is multiplied by alpha / rank."""
    targets: Annotated[list[Projection], Field(min_length=1, max_length=7), list_set()] = Field(
        default=["q_proj", "v_proj"]
    )
    """Linear layers of each block that have an adapter."""
    merge: bool = False
    """After the last step, also write a checkpoint of the merged weights (base weights plus
    adapters) to merged/ below checkpoint.uri."""


TrackerName = Literal["tensorboard", "wandb"]
"""Experiment trackers."""


class Training(ApiModel):
    """Training settings. Exactly one of steps and tokens must be set."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Number of optimizer steps."""
    tokens: Annotated[int, Field(ge=1, le=1_000_000_000_000_000)] | None = None
    """Number of training tokens without padding, rounded up to whole steps."""
    global_batch_size: Annotated[int, Field(ge=1, le=16_777_216)]
    """Number of sequences per optimizer step, over all ranks."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1
    """Number of sequences per forward pass of one data rank."""
    precision: Literal["float64", "float32", "bfloat16"] = "bfloat16"
    """Data type of computation. With bfloat16, weights and optimizer state are float32."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """Optimizer settings."""
    schedule: Schedule = Field(default_factory=Schedule)
    """Learning-rate schedule."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    """Random seed of the initial weights and of the data order."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations to recompute in the backward pass: none, selective or full."""
    compile: bool = False
    """Compile transformer blocks with torch.compile."""
    gradient_sync: GradientSync = Field(default_factory=GradientSync)
    """Gradient synchronization between model replicas."""
    communication: Communication | None = None
    """Transfer of the sums between model replicas."""
    collective_probe: CollectiveProbe | None = None
    """Network probe between steps, which excludes waiting for slow ranks. Disabled when absent."""
    evaluate_every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of steps between two evaluations on held-out data. Always evaluated before the first
    and after the last step."""
    evaluate_tokens: Annotated[int, Field(ge=1, le=1_000_000_000_000)] = EVALUATE_TOKENS
    """Maximum number of held-out tokens of an evaluation, from sequences that are evenly spread and
    the same each time. At least one sequence of each source is evaluated."""
    trackers: Annotated[list[TrackerName], Field(min_length=1, max_length=2), list_set()] | None = (
        None
    )
    """Experiment trackers that get the metrics of the run: tensorboard (event files beside the
    checkpoints) or wandb (Weights & Biases). The image must have their packages."""
    lora: Lora | None = None
    """Train low-rank adapters; the weights of model.initFrom are frozen."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.steps) != has(self.tokens)",
            "set exactly one of steps and tokens",
            "",
            lambda self: (self.steps is None) != (self.tokens is None),
        ),
        Rule(
            "self.globalBatchSize % self.microBatchSize == 0",
            "globalBatchSize must be a multiple of microBatchSize",
            ".globalBatchSize",
            lambda self: self.global_batch_size % self.micro_batch_size == 0,
        ),
        Rule(
            "!has(self.communication) || self.gradientSync.mode == 'every-step'",
            "communication needs gradientSync.mode every-step",
            ".communication",
            lambda self: self.communication is None or self.gradient_sync.mode == "every-step",
        ),
    )


Degree = Annotated[int, Field(ge=1, le=1024)]
WideDegree = Annotated[int, Field(ge=1, le=65536)]


class Parallelism(ApiModel):
    """Parallel degrees. Their product is the world size."""

    tensor: Degree = 1
    """Tensor-parallel degree, with sequence parallelism."""
    pipeline: Degree = 1
    """Pipeline-parallel degree."""
    context: Degree = 1
    """Context-parallel degree: number of ranks per sequence."""
    data: WideDegree | None = None
    """Data-parallel degree: number of ranks that shard the parameters (FSDP). Derived from
    workers.nodes when absent."""
    replicate: WideDegree = 1
    """Replica groups (HSDP)."""
    expert: Degree = 1
    """Expert-parallel degree: number of consecutive data and context ranks that share the experts
    of a layer. Must divide data x context, and is not a factor of the world size."""
    pipeline_schedule: Literal[
        "GPipe",
        "1F1B",
        "Interleaved1F1B",
        "LoopedBFS",
        "InterleavedZeroBubble",
        "ZBVZeroBubble",
        "DualPipeV",
    ] = "1F1B"
    """Pipeline schedule."""
    virtual_stages: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of model chunks per pipeline rank, for interleaved schedules."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.data) || self.data * self.context % self.expert == 0",
            "expert must divide data x context",
            ".expert",
            lambda self: self.data is None or self.data * self.context % self.expert == 0,
        ),
    )
