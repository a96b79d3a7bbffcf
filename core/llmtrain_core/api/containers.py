"""What containers of a pod have in common: variables and resources. Also init containers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import (
    LABEL_KEY,
    ApiModel,
    Name,
    ObjectName,
    OneOf,
    Quantities,
    Rule,
    Text,
    keys_match,
    list_map,
)
from llmtrain_core.api.volumes import DataKey

Image = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[!-~]+$")]
Command = Annotated[list[Text], Field(min_length=1, max_length=256)]
Arguments = Annotated[list[Text], Field(max_length=256)]


class KeySelector(ApiModel):
    """A key of a Secret or ConfigMap in the namespace of the job."""

    name: ObjectName
    """Name of the object."""
    key: DataKey
    """Key in the object."""
    optional: bool | None = None
    """Start the pods without the variable if the object or the key does not exist."""


class FieldSelector(ApiModel):
    """A field of the pod."""

    field_path: Literal[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ]
    """Path of the field."""


class EnvVarSource(OneOf):
    """Source of the value of a variable. Exactly one must be set."""

    secret_key_ref: KeySelector | None = None
    """Key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """Key of a ConfigMap."""
    field_ref: FieldSelector | None = None
    """Field of the pod."""


class EnvVar(ApiModel):
    """An environment variable, with a value or with a source of its value."""

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable. Rejected are variables of the pod contract (LLMTRAIN_* except
    LLMTRAIN_METRICS; MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK, NODE_RANK,
    LOCAL_WORLD_SIZE; PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR,
    PET_MASTER_PORT), LD_PRELOAD, and those by which a container runtime chooses devices (NVIDIA_*,
    *_VISIBLE_DEVICES). Accepted are NVIDIA_TF32_OVERRIDE, CUDA_VISIBLE_DEVICES,
    HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES and ASCEND_RT_VISIBLE_DEVICES."""
    value: Annotated[str, Field(max_length=32768)] = ""
    """Value of the variable."""
    value_from: EnvVarSource | None = None
    """Source of the value. Rejected with a value."""


class ObjectReference(ApiModel):
    """A Secret or ConfigMap in the namespace of the job."""

    name: ObjectName
    """Name of the object."""
    optional: bool | None = None
    """Start the pods without the variables if the object does not exist."""


class EnvFromSource(OneOf):
    """Variables from all keys of a Secret or ConfigMap. Exactly one must be set."""

    prefix: Annotated[str, Field(min_length=2, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*_$")]
    """Start of the names of the variables, in front of each key; it ends with an underscore. It is
    required, because the names of the variables are otherwise not known. Rejected are LLMTRAIN_,
    LD_, NVIDIA_, and other prefixes by which a container runtime chooses devices (AMD_, ASCEND_,
    HABANA_)."""
    secret_ref: ObjectReference | None = None
    """Secret whose keys are variables."""
    config_map_ref: ObjectReference | None = None
    """ConfigMap whose keys are variables."""


Variables = Annotated[list[EnvVar], Field(max_length=256), list_map("name")]
VariableSources = Annotated[list[EnvFromSource], Field(max_length=32)]


class ResourceAmounts(ApiModel):
    """Resource requests and limits of a container."""

    requests: Quantities | None = None
    """Requested amounts by resource name."""
    limits: Quantities | None = None
    """Limits by resource name."""


class Resources(ResourceAmounts):
    """Resource requests and limits of the container, without GPUs."""

    cel_rules: ClassVar[tuple[Rule, ...]] = tuple(
        keys_match(field, field, LABEL_KEY, "the name of a resource is cpu, memory or DOMAIN/NAME")
        for field in ("requests", "limits")
    )


class InitContainer(ApiModel):
    """A container that runs to its end before the trainer starts, to stage data for example.

    It has the variables of the pod contract and the volumes of the job, at the same paths. It
    cannot request devices.
    """

    name: Name
    """Name of the container. Must be unique in the job."""
    image: Image
    """Container image."""
    command: Command | None = None
    """Command. That of the image when absent."""
    args: Arguments | None = None
    """Arguments of the command."""
    env: Variables | None = None
    """Additional environment variables, as in workers.env. Those of workers.env are not set."""
    env_from: VariableSources | None = None
    """Additional environment variables from all keys of Secrets and ConfigMaps."""
    resources: ResourceAmounts | None = None
    """Resource requests and limits, without devices. Init containers run before the trainer, so a
    pod requests the larger amount of the two."""


InitContainers = Annotated[list[InitContainer], Field(max_length=8), list_map("name")]
