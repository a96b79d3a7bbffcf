"""The pods of a job: the section `workers`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import (
    LABEL_KEY,
    ApiModel,
    ExtendedResource,
    LabelKey,
    Labels,
    Name,
    ObjectName,
    Quantities,
    Quantity,
    Rule,
    Text,
    keys_match,
    list_map,
)
from llmtrain_core.api.defaults import GPU_RESOURCE, MAX_NODES

_MOUNT_PATH = r"^(/([^/.:\x00-\x1f]|\.[^/.:\x00-\x1f]|\.\.[^/:\x00-\x1f])[^/:\x00-\x1f]*)+$"
"""No part is empty, `.` or `..`: a path has one spelling, which the checks can compare."""
Nodes = Annotated[int, Field(ge=1, le=MAX_NODES)]


class EnvVar(ApiModel):
    """One environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name; variables of the pod contract are refused."""
    value: Annotated[str, Field(max_length=32768)] = ""
    """Value."""


class Resources(ApiModel):
    """Requests and limits of the container besides the GPUs, as in a pod."""

    requests: Quantities | None = None
    """Minimum amounts by resource name."""
    limits: Quantities | None = None
    """Maximum amounts by resource name."""

    cel_rules: ClassVar[tuple[Rule, ...]] = tuple(
        keys_match(field, field, LABEL_KEY, "the name of a resource is cpu, memory or DOMAIN/NAME")
        for field in ("requests", "limits")
    )


class ClaimVolume(ApiModel):
    """A persistent volume claim of the job's namespace."""

    claim_name: ObjectName
    """Name of the claim."""
    read_only: bool = False
    """Mount it read-only."""


class ConfigMapVolume(ApiModel):
    """A ConfigMap of the job's namespace."""

    name: ObjectName
    """Name of the ConfigMap."""


class EmptyDirVolume(ApiModel):
    """Scratch space that lives as long as the pod."""

    size_limit: Quantity | None = None
    """Upper bound."""


class Volume(ApiModel):
    """A volume and where it is mounted: exactly one kind."""

    name: Name
    """Name of the volume, unique in the job."""
    mount_path: Annotated[str, Field(min_length=2, max_length=1024, pattern=_MOUNT_PATH)]
    """Where it appears in the container: an absolute path without empty parts, `.` and `..`."""
    persistent_volume_claim: ClaimVolume | None = None
    """A persistent volume claim."""
    config_map: ConfigMapVolume | None = None
    """A ConfigMap."""
    empty_dir: EmptyDirVolume | None = None
    """Scratch space."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.configMap) ? 1 : 0)"
            " + (has(self.emptyDir) ? 1 : 0) == 1",
            "set exactly one of persistentVolumeClaim, configMap and emptyDir",
            holds=lambda self: (
                (self.persistent_volume_claim, self.config_map, self.empty_dir).count(None) == 2
            ),
        ),
    )


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    key: LabelKey | None = None
    """Taint key; absent with operator Exists: all keys."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent: all effects."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            "without a key the operator must be Exists",
            ".operator",
            lambda self: self.key is not None or self.operator == "Exists",
        ),
        Rule(
            "!has(self.value) || self.value == '' || self.operator == 'Equal'",
            "the operator Exists takes no value",
            ".value",
            lambda self: not self.value or self.operator == "Equal",
        ),
    )


class Workers(ApiModel):
    """The pods: one per node."""

    nodes: Nodes | None = None
    """Number of nodes; derived from the parallel degrees when absent."""
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 8
    """GPUs, and so ranks, on each node."""
    gpu_resource: ExtendedResource = GPU_RESOURCE
    """The extended resource that stands for a GPU."""
    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[!-~]+$")]
    """Container image."""
    command: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    """Your own trainer (torchrun, Megatron, torchtitan); model, data and training are then
    optional."""
    args: Annotated[list[Text], Field(max_length=256)] | None = None
    """Arguments of the command."""
    env: Annotated[list[EnvVar], Field(max_length=256), list_map("name")] | None = None
    """Extra environment variables."""
    resources: Resources | None = None
    """CPU, memory and other resources of a pod."""
    shm_size: Quantity = "1Gi"
    """Size of /dev/shm."""
    volumes: Annotated[list[Volume], Field(max_length=64), list_map("name")] | None = None
    """Volumes of each pod."""
    node_selector: Labels | None = None
    """Labels that a node must carry."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints that are accepted."""
    pod_patch: dict[str, Any] | None = None
    """Strategic patch of the pod template."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        keys_match("node_selector", "nodeSelector", LABEL_KEY, "not the key of a label"),
        Rule(
            "!has(self.args) || size(self.args) == 0 || has(self.command)",
            "arguments are for a command of your own: set command as well",
            ".args",
            lambda self: not self.args or self.command is not None,
        ),
        Rule(
            "!has(self.volumes) || self.volumes.all(one, self.volumes.exists_one(other,"
            " other.mountPath == one.mountPath))",
            "two volumes are mounted at the same path",
            ".volumes",
            lambda self: _distinct([volume.mount_path for volume in self.volumes or ()]),
        ),
    )


def _distinct(keys: list[str]) -> bool:
    return len(set(keys)) == len(keys)
