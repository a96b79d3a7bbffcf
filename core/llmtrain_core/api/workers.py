"""Section `workers` of a job: the pods."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

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
    quantity_value,
)
from llmtrain_core.api.defaults import GPU_RESOURCE, MAX_NODES, SHM_SIZE

_MOUNT_PATH = r"^(/([^/.:\x00-\x1f]|\.[^/.:\x00-\x1f]|\.\.[^/:\x00-\x1f])[^/:\x00-\x1f]*)+$"
"""Paths have no empty segments, `.` or `..`, so that equal paths are equal strings."""
Nodes = Annotated[int, Field(ge=1, le=MAX_NODES)]


class EnvVar(ApiModel):
    """An environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable. Rejected are variables of the pod contract (LLMTRAIN_* except
    LLMTRAIN_METRICS; MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK, NODE_RANK,
    LOCAL_WORLD_SIZE; PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR,
    PET_MASTER_PORT), LD_PRELOAD, and those by which a container runtime chooses devices (NVIDIA_*,
    *_VISIBLE_DEVICES). Accepted are NVIDIA_TF32_OVERRIDE, CUDA_VISIBLE_DEVICES,
    HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES and ASCEND_RT_VISIBLE_DEVICES."""
    value: Annotated[str, Field(max_length=32768)] = ""
    """Value of the variable."""


class Resources(ApiModel):
    """Resource requests and limits of the container, without GPUs."""

    requests: Quantities | None = None
    """Requested amounts by resource name."""
    limits: Quantities | None = None
    """Limits by resource name."""

    cel_rules: ClassVar[tuple[Rule, ...]] = tuple(
        keys_match(field, field, LABEL_KEY, "the name of a resource is cpu, memory or DOMAIN/NAME")
        for field in ("requests", "limits")
    )


class ClaimVolume(ApiModel):
    """PersistentVolumeClaim in the namespace of the job."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    read_only: bool = False
    """Mount the volume read-only."""


class ConfigMapVolume(ApiModel):
    """ConfigMap in the namespace of the job."""

    name: ObjectName
    """Name of the ConfigMap."""


class EmptyDirVolume(ApiModel):
    """Empty directory with the lifetime of the pod."""

    size_limit: Quantity | None = None
    """Maximum size."""


class Volume(ApiModel):
    """A volume and its mount. Exactly one volume type must be set."""

    name: Name
    """Name of the volume. Must be unique in the job."""
    mount_path: Annotated[str, Field(min_length=2, max_length=1024, pattern=_MOUNT_PATH)]
    """Mount path in the container: an absolute path without empty segments, `.` or `..`. Rejected
    are folders of the pod contract (/etc/llmtrain, /var/lib/llmtrain, /tmp, /dev, /proc, /sys), of
    the container runtime (nvidia-container-devices and secrets/kubernetes.io in /run and /var/run)
    and, without command, of the trainer image (/opt/llmtrain, /bin, /sbin, /lib, /lib64, /usr/bin,
    /usr/lib, /usr/local/bin, /usr/local/lib), and folders above or below them."""
    persistent_volume_claim: ClaimVolume | None = None
    """PersistentVolumeClaim to mount."""
    config_map: ConfigMapVolume | None = None
    """ConfigMap to mount."""
    empty_dir: EmptyDirVolume | None = None
    """Empty directory to mount."""

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
    """Taint key to match. With operator Exists, matches all keys when absent."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Operator that compares the value: Exists or Equal."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value to match."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect to match. Matches all effects when absent."""

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
    """Pods of the job, one per node."""

    nodes: Nodes | None = None
    """Number of nodes. Derived from the parallel degrees when absent."""
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of GPUs, and of ranks, per node."""
    gpu_resource: ExtendedResource = GPU_RESOURCE
    """Extended resource of the GPUs."""
    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[!-~]+$")]
    """Container image."""
    command: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    """Command of a third-party trainer (torchrun, Megatron, torchtitan). If set, model, data and
    training are optional."""
    args: Annotated[list[Text], Field(max_length=256)] | None = None
    """Arguments of the command."""
    env: Annotated[list[EnvVar], Field(max_length=256), list_map("name")] | None = None
    """Additional environment variables."""
    resources: Resources | None = None
    """Resource requests and limits of each pod, without GPUs. Without a limit of ephemeral-storage,
    what the pod writes to /tmp and /var/lib/llmtrain can fill the disk of the node."""
    shm_size: Quantity = SHM_SIZE
    """Size of /dev/shm, at least 1Mi. It is memory of the pod: the pod requests at least as much
    memory, and a memory limit must be larger."""
    read_only_root_filesystem: bool | None = None
    """Mount the root file system of the container read-only. Volumes, /tmp, /dev/shm and
    /var/lib/llmtrain are writable. If absent: true without command, false with command."""
    volumes: Annotated[list[Volume], Field(max_length=64), list_map("name")] | None = None
    """Volumes of each pod."""
    node_selector: Labels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Tolerations of the pods."""

    @property
    def has_read_only_root(self) -> bool:
        """Whether the root file system of the container is read-only."""
        if self.read_only_root_filesystem is None:
            return self.command is None
        return self.read_only_root_filesystem

    @property
    def memory_request(self) -> Quantity | None:
        """Memory that the pod requests; None if it is that of the memory limit.

        It is at least `shm_size`: what a pod writes to /dev/shm is memory of the node.
        """
        given = self.resources
        request = ((given and given.requests) or {}).get("memory")
        if request is None:
            limited = "memory" in ((given and given.limits) or {})
            return None if limited else self.shm_size
        return max(request, self.shm_size, key=quantity_value)

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
