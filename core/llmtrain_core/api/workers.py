"""Section `workers` of a job: the pods."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from llmtrain_core.api.base import (
    LABEL_KEY,
    ApiModel,
    ExtendedResource,
    LabelKey,
    Labels,
    ObjectName,
    Quantity,
    Rule,
    keys_match,
    list_map,
    quantity_value,
    without_nulls,
)
from llmtrain_core.api.containers import (
    Arguments,
    Command,
    Image,
    InitContainers,
    Resources,
    Variables,
    VariableSources,
)
from llmtrain_core.api.defaults import (
    GPU_RESOURCE,
    MAX_NODES,
    MAX_TERMINATION_GRACE_SECONDS,
    SHM_SIZE,
    TERMINATION_GRACE_SECONDS,
)
from llmtrain_core.api.device_claims import DeviceClaims
from llmtrain_core.api.pod_patch import PodPatch
from llmtrain_core.api.volumes import Volume

Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=8192)]],
    Field(max_length=32),
    BeforeValidator(without_nulls),
]
GraceSeconds = Annotated[int, Field(ge=TERMINATION_GRACE_SECONDS, le=MAX_TERMINATION_GRACE_SECONDS)]
Nodes = Annotated[int, Field(ge=1, le=MAX_NODES)]


class RegistrySecret(ApiModel):
    """A Secret in the namespace of the job with credentials of a registry."""

    name: ObjectName
    """Name of the Secret."""


PullSecrets = Annotated[list[RegistrySecret], Field(max_length=16), list_map("name")]


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
    """Extended resource of the GPUs. If deviceClaims have the GPUs, it is not requested, and only
    taints of this name are tolerated."""
    device_claims: DeviceClaims | None = None
    """Devices by dynamic resource allocation (DRA): claims of each pod, for GPUs or NICs. Needs
    --device-claims of the operator."""
    image: Image
    """Container image."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the images of the pods are pulled. If absent: always for the tag latest, else if the
    node does not have the image."""
    image_pull_secrets: PullSecrets | None = None
    """Secrets with which the images of the pods are pulled. If absent: those of the service
    account."""
    command: Command | None = None
    """Command of a third-party trainer (torchrun, Megatron, torchtitan). If set, model, data and
    training are optional."""
    args: Arguments | None = None
    """Arguments of the command."""
    env: Variables | None = None
    """Additional environment variables."""
    env_from: VariableSources | None = None
    """Additional environment variables from all keys of Secrets and ConfigMaps. Variables of env
    and of the pod contract take precedence."""
    init_containers: InitContainers | None = None
    """Containers that run one after the other before the trainer starts. They count towards
    failurePolicy.startupTimeout."""
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
    """Tolerations of the pods. Taints with the name of a device that the pods request are
    tolerated in any case."""
    service_account_name: ObjectName | None = None
    """Service account of the pods. Defaults to that named default. With the admission policy of the
    chart, the namespace needs the label llmtrain.dev/allow-service-accounts=true."""
    automount_service_account_token: bool | None = None
    """Mount a token of the service account for the API server. If absent: false."""
    pod_labels: Labels | None = None
    """Additional labels of the pods. Rejected are app.kubernetes.io/managed-by and the domains
    llmtrain.dev and kueue.x-k8s.io."""
    pod_annotations: Annotations | None = None
    """Additional annotations of the pods, such as k8s.v1.cni.cncf.io/networks. Rejected are the
    domains llmtrain.dev and kueue.x-k8s.io, and those by which a container runtime gives a pod
    devices or mounts of the node (cdi.k8s.io, io.kubernetes.cri-o, devices.gke.io, and devices,
    mounts and cdi-devices of nri.io and noderesource.dev)."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods."""
    termination_grace_period_seconds: GraceSeconds | None = None
    """Seconds between SIGTERM and SIGKILL of a pod, 30 if absent. The trainer saves a checkpoint
    meanwhile."""
    pod_patch: PodPatch | None = None
    """Part of a pod template that is merged into the pods. Host network, host paths, root,
    capabilities and privileged containers need --allow-privileged-pods of the operator and a
    namespace whose Pod Security level admits them."""

    @property
    def gpu_class(self) -> str | None:
        """DeviceClass of the GPUs; None if they are requested as gpuResource."""
        claims = self.device_claims or ()
        found = (each for claim in claims for each in claim.requests if each.gpus)
        first = next(found, None)
        return None if first is None else first.device_class_name

    @property
    def grace_seconds(self) -> int:
        """Seconds between SIGTERM and SIGKILL of a pod."""
        return self.termination_grace_period_seconds or TERMINATION_GRACE_SECONDS

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
