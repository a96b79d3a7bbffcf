"""Spec of the `LLMTrainingJob` resource.

Rules that need only the manifest are defined here. Rules that need more (the architecture of a
preset, the features of this release) are in `llmtrain_core.validation.check`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
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
from llmtrain_core.api.containers import EnvVar, Resources
from llmtrain_core.api.data import Chat, Data, DataSource, Tokenizer
from llmtrain_core.api.defaults import MAX_NODES, MAX_TRIAL_STEPS, MIN_TRIAL_STEPS
from llmtrain_core.api.model import Architecture, Model
from llmtrain_core.api.policies import FailurePolicy, FailureRule, RunPolicy
from llmtrain_core.api.training import (
    GradientSync,
    Lora,
    Optimizer,
    Parallelism,
    Schedule,
    Training,
)
from llmtrain_core.api.volumes import ClaimVolume, ConfigMapVolume, EmptyDirVolume, Volume
from llmtrain_core.api.workers import Toleration, Workers

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


class Topology(ApiModel):
    """Topology constraints."""

    fabric: ObjectName | None = None
    """Name of the Fabric. Defaults to the Fabric named default, or to node labels if there is
    none."""
    require: Name | None = None
    """Level at which all pods must be in one domain."""
    prefer: Name | None = None
    """Level at which all pods should be in one domain. Ignored if no domain has enough free nodes.
    A level that the fabric does not have is rejected."""
    tensor_within: Name | None = None
    """Level at which each tensor-parallel group must be in one domain. Defaults to the node."""
    spares: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of nodes, near the gang and without pods, kept to replace failed nodes. Another job
    gets them if no other nodes are free."""
    compute_domain: Literal["auto"] | None = None
    """auto: each attempt of the job gets a ComputeDomain, so that its GPUs can use NVLink between
    nodes. Needs --compute-domains of the operator, and the DRA driver of NVIDIA. A node can be in
    one ComputeDomain at a time."""
    exclude_nodes: Annotated[list[ObjectName], Field(max_length=1024), list_set()] | None = None
    """Names of nodes to exclude."""


class Rdma(ApiModel):
    """RDMA devices."""

    resource: ExtendedResource
    """Extended resource of the devices, for example rdma/hca_shared_devices_a."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of devices per pod."""


NcclVariables = Annotated[dict[str, Text], Field(max_length=64), BeforeValidator(without_nulls)]


NetworkProfile = Literal["infiniband", "roce", "efa", "tcpxo", "tcpx", "tcp"]
"""A value of `network.profile` besides `auto`."""


MAX_CANDIDATE_VALUE = 64
"""Maximum length of a value in `network.tuning.candidates`."""
TriedVariables = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_CANDIDATE_VALUE)]],
    Field(min_length=1, max_length=4),
    BeforeValidator(without_nulls),
]
_CANDIDATE_NAME = "NCCL_[A-Z0-9_]{1,59}"
LEFT_TO_NCCL = ("NCCL_ALGO", "NCCL_PROTO", "NCCL_BUFFSIZE")
"""Variables that are never tried: NCCL chooses them for each call."""


def is_candidate_name(name: str) -> bool:
    """Return True for a variable that may be tried."""
    return re.fullmatch(_CANDIDATE_NAME, name, re.ASCII) is not None and name not in LEFT_TO_NCCL


class NetworkTuning(ApiModel):
    """Trials of variables that NCCL reads only at its start.

    The job trains nothing: each trial takes training.steps steps in new processes, without
    evaluations. llmtrain tune makes such a job from another one.
    """

    candidates: Annotated[list[TriedVariables], Field(min_length=1, max_length=15)] | None = None
    """Variables to try, each together with the fastest before it. Defaults to those that the
    network of the placement allows and that are not set yet."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.candidates) || self.candidates.all(each, each.all(name,"
            f" name.matches('^{_CANDIDATE_NAME}$') && !(name in {[*LEFT_TO_NCCL]})))",
            f"only variables named NCCL_..., without {', '.join(LEFT_TO_NCCL)}",
            ".candidates",
            lambda self: all(
                is_candidate_name(name) for each in self.candidates or () for name in each
            ),
        ),
    )


class Network(ApiModel):
    """Network settings."""

    profile: Literal["auto", NetworkProfile] = "auto"
    """Network type. auto: the network that the nodes show, else NCCL selects it. tcp: RDMA is not
    used, even if available. With any other profile, only nodes that show the network are used, and
    the job fails instead of using TCP."""
    rdma: Rdma | None = None
    """RDMA devices to request, instead of those of the network."""
    nccl: NcclVariables | None = None
    """NCCL environment variables. They override those of the network and the profile."""
    tuning: NetworkTuning | None = None
    """Try NCCL variables instead of training. Needs training.steps, mode every-step, and no
    checkpoint."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        keys_match("nccl", "nccl", "^NCCL_[A-Z0-9_]{1,120}$", "only variables named NCCL_..."),
    )


class Checkpoint(ApiModel):
    """Checkpoint settings."""

    uri: Uri
    """Folder that all pods share: file:///PATH on a shared volume, or s3://BUCKET/PATH."""
    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] = 1000
    """Number of steps between checkpoints. A checkpoint is always written after the last step."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of complete checkpoints to keep."""
    async_: bool = Field(default=False, alias="async")
    """Write checkpoints in the background. Needs host memory for a copy of the training state."""
    export_hugging_face: Uri | None = None
    """Folder for the final model in Hugging Face safetensors format."""


# Degrees are bounded so that their product fits into 64 bits, which is all that CEL has.
_WITHOUT_DATA = (
    "self.parallelism.tensor * self.parallelism.pipeline * self.parallelism.context"
    " * self.parallelism.replicate"
)


def _asked(spec: JobSpec) -> int:
    """Return the product of the degrees that are set."""
    degrees = spec.parallelism
    product = degrees.tensor * degrees.pipeline * degrees.context * degrees.replicate
    return product * (degrees.data or 1)


def _gpus(spec: JobSpec) -> int:
    return spec.workers.gpus_per_node


def _tuning_rule(cel: str, message: str, field: str, holds: Callable[[JobSpec], bool]) -> Rule:
    """Return a rule for jobs with `network.tuning`."""
    return Rule(
        f"!has(self.network) || !has(self.network.tuning) || {cel}",
        f"network.tuning {message}",
        field,
        lambda self: self.network is None or self.network.tuning is None or holds(self),
    )


def _has_trial_steps(spec: JobSpec) -> bool:
    steps = spec.training.steps if spec.training else None
    return steps is not None and MIN_TRIAL_STEPS <= steps <= MAX_TRIAL_STEPS


def _can_be_tried(training: Training | None) -> bool:
    """Return True if every step of a trial communicates in the same way."""
    if training is None:
        return False
    tries = training.communication is not None and training.communication.autotune
    return training.gradient_sync.mode == "every-step" and not tries


def _required_without_command(field: str) -> Rule:
    return Rule(
        f"has(self.workers.command) || has(self.{field})",
        f"{field} is required unless workers.command is set",
        f".{field}",
        lambda self: self.workers.command is not None or getattr(self, field) is not None,
        "FieldValueRequired",
    )


IMMUTABLE = (
    "managedBy",
    "model",
    "data",
    "training",
    "parallelism",
    "workers",
    "topology",
    "network",
    "checkpoint",
)
"""Fields of a spec that are immutable: a running job, and its checkpoints, depend on them."""


class JobSpec(ApiModel):
    """Specification of a training job."""

    suspend: bool = False
    """Stop the job and release its nodes. If set to false, the job resumes from its last
    checkpoint."""
    managed_by: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """Controller that manages the job, as in batch/v1 Job. This operator ignores jobs with a value
    other than llmtrain.dev/operator."""
    priority_class_name: ObjectName | None = None
    """Name of the PriorityClass of the job and of its pods."""
    model: Model | None = None
    """Model to train."""
    data: Data | None = None
    """Training data."""
    training: Training | None = None
    """Training settings."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """Parallel degrees. Their product is the world size."""
    workers: Workers
    """Pods of the job, one per node."""
    topology: Topology | None = None
    """Topology constraints."""
    network: Network | None = None
    """Network settings of the pods."""
    checkpoint: Checkpoint | None = None
    """Checkpoint settings."""
    failure_policy: FailurePolicy | None = None
    """Failure policy."""
    run_policy: RunPolicy | None = None
    """Deadline, TTL and pod cleanup policy."""

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
        _tuning_rule(
            "!has(self.workers.command)",
            "needs this trainer: remove workers.command",
            ".network.tuning",
            lambda self: self.workers.command is None,
        ),
        _tuning_rule(
            "!has(self.checkpoint)",
            "writes no checkpoints: remove checkpoint",
            ".checkpoint",
            lambda self: self.checkpoint is None,
        ),
        _tuning_rule(
            "(has(self.training) && has(self.training.steps)"
            f" && self.training.steps >= {MIN_TRIAL_STEPS}"
            f" && self.training.steps <= {MAX_TRIAL_STEPS})",
            f"needs training.steps from {MIN_TRIAL_STEPS} to {MAX_TRIAL_STEPS}, for each trial",
            ".training",
            _has_trial_steps,
        ),
        _tuning_rule(
            "(has(self.training) && self.training.gradientSync.mode == 'every-step'"
            " && (!has(self.training.communication) || !self.training.communication.autotune))",
            "needs gradientSync.mode every-step and no communication.autotune",
            ".training",
            lambda self: _can_be_tried(self.training),
        ),
    )
