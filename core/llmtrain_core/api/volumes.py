"""Volumes of the pods: where they are mounted, and what is in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Name, ObjectName, OneOf, Quantity, list_map

_MOUNT_PATH = r"^(/([^/.:\x00-\x1f]|\.[^/.:\x00-\x1f]|\.\.[^/:\x00-\x1f])[^/:\x00-\x1f]*)+$"
"""Paths have no empty segments, `.` or `..`, so that equal paths are equal strings."""
_SEGMENT = r"([^/.:\x00-\x1f]|\.[^/.:\x00-\x1f])[^/:\x00-\x1f]*"
_FILE_PATH = rf"^{_SEGMENT}(/{_SEGMENT})*$"
"""A relative path without empty segments, `.`, or segments that start with `..`."""

AbsolutePath = Annotated[str, Field(min_length=2, max_length=1024, pattern=_MOUNT_PATH)]
DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key of a Secret or of a ConfigMap."""
FilePath = Annotated[str, Field(min_length=1, max_length=1024, pattern=_FILE_PATH)]
FileMode = Annotated[int, Field(ge=0, le=0o777)]


class ClaimVolume(ApiModel):
    """PersistentVolumeClaim in the namespace of the job."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    read_only: bool = False
    """Mount the volume read-only."""


class KeyFile(ApiModel):
    """A key of a Secret or ConfigMap, and the file that has its value."""

    key: DataKey
    """Key in the object."""
    path: FilePath
    """Path of the file below the mount path."""
    mode: FileMode | None = None
    """Mode of the file as a decimal number, such as 256 (0400). Defaults to that of the volume."""


KeyFiles = Annotated[list[KeyFile], Field(max_length=64), list_map("path")]


class ConfigMapVolume(ApiModel):
    """ConfigMap in the namespace of the job. Its files are read-only."""

    name: ObjectName
    """Name of the ConfigMap."""
    items: KeyFiles | None = None
    """Keys to mount. All keys when absent."""
    optional: bool | None = None
    """Start the pods without the ConfigMap, or without one of its keys, if it does not exist."""
    default_mode: FileMode | None = None
    """Mode of the files as a decimal number. Defaults to 420 (0644)."""


class SecretVolume(ApiModel):
    """Secret in the namespace of the job. Its files are read-only."""

    secret_name: ObjectName
    """Name of the Secret."""
    items: KeyFiles | None = None
    """Keys to mount. All keys when absent."""
    optional: bool | None = None
    """Start the pods without the Secret, or without one of its keys, if it does not exist."""
    default_mode: FileMode | None = None
    """Mode of the files as a decimal number. Defaults to 420 (0644)."""


class ObjectProjection(ApiModel):
    """Files of a Secret or ConfigMap in the namespace of the job."""

    name: ObjectName
    """Name of the object."""
    items: KeyFiles | None = None
    """Keys to mount. All keys when absent."""
    optional: bool | None = None
    """Start the pods without the object, or without one of its keys, if it does not exist."""


class TokenProjection(ApiModel):
    """A token of the service account of the pods for one audience."""

    audience: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[!-~]+$")]
    """Audience of the token: the service that checks it."""
    expiration_seconds: Annotated[int, Field(ge=600, le=86400)] = 3600
    """Seconds for which the token is valid. The kubelet renews it before."""
    path: FilePath
    """Path of the file below the mount path."""


class ProjectedSource(OneOf):
    """A source of files. Exactly one must be set."""

    secret: ObjectProjection | None = None
    """Secret whose keys are files."""
    config_map: ObjectProjection | None = None
    """ConfigMap whose keys are files."""
    service_account_token: TokenProjection | None = None
    """Token of the service account of the pods."""


class ProjectedVolume(ApiModel):
    """Files of several sources in one folder. They are read-only."""

    sources: Annotated[list[ProjectedSource], Field(min_length=1, max_length=16)]
    """Sources of the files."""
    default_mode: FileMode | None = None
    """Mode of the files as a decimal number. Defaults to 420 (0644)."""


class EmptyDirVolume(ApiModel):
    """Empty directory with the lifetime of the pod."""

    size_limit: Quantity | None = None
    """Maximum size."""


class Volume(OneOf):
    """A volume and its mount. Exactly one volume type must be set."""

    name: Name
    """Name of the volume. Must be unique in the job."""
    mount_path: AbsolutePath
    """Mount path in the container: an absolute path without empty segments, `.` or `..`. Rejected
    are folders of the pod contract (/etc/llmtrain, /var/lib/llmtrain, /tmp, /dev, /proc, /sys), of
    the container runtime (nvidia-container-devices and secrets/kubernetes.io in /run and /var/run)
    and, without command, of the trainer image (/opt/llmtrain, /bin, /sbin, /lib, /lib64, /usr/bin,
    /usr/lib, /usr/local/bin, /usr/local/lib), and folders above or below them."""
    persistent_volume_claim: ClaimVolume | None = None
    """PersistentVolumeClaim to mount."""
    config_map: ConfigMapVolume | None = None
    """ConfigMap to mount, read-only."""
    secret: SecretVolume | None = None
    """Secret to mount, read-only."""
    projected: ProjectedVolume | None = None
    """Files of several Secrets, ConfigMaps and service account tokens to mount, read-only."""
    empty_dir: EmptyDirVolume | None = None
    """Empty directory to mount."""
