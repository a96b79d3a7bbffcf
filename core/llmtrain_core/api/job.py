"""`LLMTrainingJob`: the spec a user writes.

Structure and rules that need nothing but the manifest live here. What needs more knowledge (a
preset's shape, what this release can do) is checked by `llmtrain_core.validation.check`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from llmtrain_core.api.base import (
    ApiModel,
    ExtendedResource,
    Name,
    ObjectName,
    Rule,
    Text,
    Uri,
    keys_match,
    list_set,
    without_nulls,
)
from llmtrain_core.api.data import Chat, Data, DataSource, Tokenizer
from llmtrain_core.api.defaults import MAX_NODES
from llmtrain_core.api.model import Architecture, Model
from llmtrain_core.api.policies import FailurePolicy, FailureRule, RunPolicy
from llmtrain_core.api.training import GradientSync, Lora, Optimizer, Schedule, Training
from llmtrain_core.api.workers import (
    ClaimVolume,
    ConfigMapVolume,
    EmptyDirVolume,
    EnvVar,
    Resources,
    Toleration,
    Volume,
    Workers,
)

__all__ = [
    "Architecture",
    "Chat",
    "Checkpoint",
    "ClaimVolume",
    "ConfigMapVolume",
    "Data",
    "DataSource",
    "EmptyDirVolume",
    "EnvVar",
    "FailurePolicy",
    "FailureRule",
    "GradientSync",
    "JobSpec",
    "Lora",
    "Model",
    "Network",
    "Optimizer",
    "Parallelism",
    "Rdma",
    "Resources",
    "RunPolicy",
    "Schedule",
    "Tokenizer",
    "Toleration",
    "Topology",
    "Training",
    "Volume",
    "Workers",
]

Degree = Annotated[int, Field(ge=1, le=1024)]
WideDegree = Annotated[int, Field(ge=1, le=65536)]


class Parallelism(ApiModel):
    """Degrees of the parallel dimensions; their product is the world size."""

    tensor: Degree = 1
    """Ranks that share every matrix (with sequence parallelism)."""
    pipeline: Degree = 1
    """Pipeline stages."""
    context: Degree = 1
    """Ranks that share one sequence."""
    data: WideDegree | None = None
    """Ranks that shard parameters over different data (FSDP); derived from workers.nodes when
    absent."""
    replicate: WideDegree = 1
    """Copies of the sharded model (HSDP)."""
    expert: Degree = 1
    """Neighbouring data and context ranks that share out the experts of every layer; divides data x
    context, so it adds no ranks."""
    pipeline_schedule: Literal[
        "GPipe",
        "1F1B",
        "Interleaved1F1B",
        "LoopedBFS",
        "InterleavedZeroBubble",
        "ZBVZeroBubble",
        "DualPipeV",
    ] = "1F1B"
    """Order of forward and backward passes over the stages."""
    virtual_stages: Annotated[int, Field(ge=1, le=64)] = 1
    """Model chunks per pipeline rank, for interleaved schedules."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.data) || self.data * self.context % self.expert == 0",
            "expert must divide data x context",
            ".expert",
            lambda self: self.data is None or self.data * self.context % self.expert == 0,
        ),
    )


class Topology(ApiModel):
    """Where the job may sit."""

    fabric: ObjectName | None = None
    """The Fabric that describes the network; absent: the one named default, else node labels."""
    require: Name | None = None
    """Level of the fabric inside one domain of which the whole job must sit."""
    prefer: Name | None = None
    """Level of the fabric inside one domain of which the job should sit: kept where a domain has
    the room, else given up. A level that the fabric lacks is refused."""
    tensor_within: Name | None = None
    """Level inside one domain of which every tensor group must sit; absent: the node."""
    spares: Annotated[int, Field(ge=0, le=1024)] = 0
    """Nodes that are held near the gang, without pods, to take the place of failed ones."""
    exclude_nodes: Annotated[list[ObjectName], Field(max_length=1024), list_set()] | None = None
    """Nodes that are not used."""


class Rdma(ApiModel):
    """The extended resource of an RDMA device."""

    resource: ExtendedResource
    """Resource name, for example rdma/hca_shared_devices_a."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices per pod."""


NcclVariables = Annotated[dict[str, Text], Field(max_length=64), BeforeValidator(without_nulls)]


class Network(ApiModel):
    """Network settings of the pods."""

    profile: Literal["auto", "infiniband", "roce", "efa", "tcpxo", "tcp"] = "auto"
    """Family of the fabric; auto: NCCL chooses; tcp: no RDMA, even where the nodes have it; any
    other is demanded: without it the job ends instead of falling back to TCP."""
    rdma: Rdma | None = None
    """RDMA devices to request."""
    nccl: NcclVariables | None = None
    """NCCL variables that override the profile."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        keys_match("nccl", "nccl", "^NCCL_[A-Z0-9_]{1,120}$", "only variables named NCCL_..."),
    )


class Checkpoint(ApiModel):
    """Where and when training state is saved."""

    uri: Uri
    """Folder that all pods see: file:///PATH on a shared volume, or s3://BUCKET/PATH."""
    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] = 1000
    """Steps between checkpoints; one more is written after the last step."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Complete checkpoints that are kept."""
    async_: bool = Field(default=False, alias="async")
    """Write in the background while training goes on; takes a copy of the state in main memory."""
    export_hugging_face: Uri | None = None
    """Where to write the model as Hugging Face safetensors after the last step."""


# Degrees are bounded so that their product fits into 64 bits, which is all that CEL has.
_WITHOUT_DATA = (
    "self.parallelism.tensor * self.parallelism.pipeline * self.parallelism.context"
    " * self.parallelism.replicate"
)


def _asked(spec: JobSpec) -> int:
    """Product of the degrees that are given."""
    degrees = spec.parallelism
    product = degrees.tensor * degrees.pipeline * degrees.context * degrees.replicate
    return product * (degrees.data or 1)


def _gpus(spec: JobSpec) -> int:
    return spec.workers.gpus_per_node


def _required_without_command(field: str) -> Rule:
    return Rule(
        f"has(self.workers.command) || has(self.{field})",
        f"{field} is required unless workers.command is set",
        f".{field}",
        lambda self: self.workers.command is not None or getattr(self, field) is not None,
        "FieldValueRequired",
    )


def _immutable(field: str, *, optional: bool = False) -> Rule:
    same = f"self.{field} == oldSelf.{field}"
    if optional:
        same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"
    return Rule(same, "the field is immutable; create a new job instead", f".{field}")


class JobSpec(ApiModel):
    """A training job: what to train, on what, how, and where."""

    suspend: bool = False
    """Stop the job and give its nodes back; false starts it again from its last checkpoint."""
    managed_by: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """Controller in charge, as in batch/v1 Job; another value than llmtrain.dev/operator means that
    this operator writes nothing."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods and of the job in the queue."""
    model: Model | None = None
    """What to train."""
    data: Data | None = None
    """What to learn from."""
    training: Training | None = None
    """How to train."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """Degrees of the parallel dimensions; their product is the world size."""
    workers: Workers
    """The pods."""
    topology: Topology | None = None
    """Where the job may sit."""
    network: Network | None = None
    """Network settings."""
    checkpoint: Checkpoint | None = None
    """Where training state is saved."""
    failure_policy: FailurePolicy | None = None
    """What happens when something breaks."""
    run_policy: RunPolicy | None = None
    """Deadline, time to live and cleaning."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        *(_required_without_command(field) for field in ("model", "data", "training")),
        Rule(
            "has(self.parallelism.data) || has(self.workers.nodes)",
            "set parallelism.data, workers.nodes or both",
            ".parallelism.data",
            lambda self: self.parallelism.data is not None or self.workers.nodes is not None,
            "FieldValueRequired",
        ),
        Rule(
            f"has(self.workers.nodes) || !has(self.parallelism.data) || {_WITHOUT_DATA}"
            f" * self.parallelism.data <= {MAX_NODES} * self.workers.gpusPerNode",
            f"the parallel degrees ask for more than {MAX_NODES} nodes",
            ".parallelism",
            lambda self: self.workers.nodes is not None or _asked(self) <= MAX_NODES * _gpus(self),
        ),
        Rule(
            f"!has(self.parallelism.data) || (has(self.workers.nodes)"
            f" ? {_WITHOUT_DATA} * self.parallelism.data"
            " == self.workers.nodes * self.workers.gpusPerNode"
            f" : {_WITHOUT_DATA} * self.parallelism.data % self.workers.gpusPerNode == 0)",
            "the product of the parallel degrees must be workers.nodes x workers.gpusPerNode",
            ".parallelism",
            lambda self: (
                self.parallelism.data is None
                or (
                    _asked(self) % _gpus(self) == 0
                    if self.workers.nodes is None
                    else _asked(self) == self.workers.nodes * _gpus(self)
                )
            ),
        ),
        Rule(
            "has(self.parallelism.data) || !has(self.workers.nodes)"
            f" || self.workers.nodes * self.workers.gpusPerNode % ({_WITHOUT_DATA}) == 0",
            "the product of the parallel degrees must divide workers.nodes x workers.gpusPerNode",
            ".parallelism",
            lambda self: (
                self.parallelism.data is not None
                or self.workers.nodes is None
                or self.workers.nodes * _gpus(self) % _asked(self) == 0
            ),
        ),
        Rule(
            "!has(self.training) || !has(self.training.lora)"
            " || (has(self.model) && has(self.model.initFrom))",
            "adapters need weights to adapt: set model.initFrom",
            ".training.lora",
            lambda self: (
                self.training is None
                or self.training.lora is None
                or (self.model is not None and self.model.init_from is not None)
            ),
        ),
        Rule(
            "!has(self.training) || !has(self.training.lora) || !self.training.lora.merge"
            " || has(self.checkpoint)",
            "merged weights are written into checkpoint.uri: set it",
            ".training.lora.merge",
            lambda self: (
                self.training is None
                or self.training.lora is None
                or not self.training.lora.merge
                or self.checkpoint is not None
            ),
        ),
        *(_immutable(field) for field in ("parallelism", "workers")),
        *(
            _immutable(field, optional=True)
            for field in (
                "managedBy",
                "model",
                "data",
                "training",
                "topology",
                "network",
                "checkpoint",
            )
        ),
    )
