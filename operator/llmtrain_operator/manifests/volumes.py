"""Volumes of a pod and their mounts: those of the pod contract, then those of the job."""

from __future__ import annotations

from typing import Any

from llmtrain_core.api import env
from llmtrain_core.api.volumes import ConfigMapVolume, ProjectedVolume, SecretVolume, Volume
from llmtrain_core.api.workers import Workers

Object = dict[str, Any]

JOB_VOLUME, WORK_VOLUME, TMP_VOLUME, SHM_VOLUME = (
    f"{env.VOLUME_PREFIX}{name}" for name in ("job", "work", "tmp", "shm")
)


def make_volumes(workers: Workers, config_map: str) -> list[Object]:
    """Return the volumes of a pod. `config_map` has the job file."""
    shm = {"medium": "Memory", "sizeLimit": str(workers.shm_size)}
    return [
        {"name": JOB_VOLUME, "configMap": {"name": config_map}},
        {"name": WORK_VOLUME, "emptyDir": {}},
        {"name": TMP_VOLUME, "emptyDir": {}},
        {"name": SHM_VOLUME, "emptyDir": shm},
        *(_volume(volume) for volume in workers.volumes or ()),
    ]


def make_mounts(workers: Workers) -> list[Object]:
    """Return the mounts of all volumes in a container."""
    return [
        {"name": JOB_VOLUME, "mountPath": env.JOB_FOLDER_PATH, "readOnly": True},
        {"name": WORK_VOLUME, "mountPath": env.WORK_DIR_PATH},
        {"name": TMP_VOLUME, "mountPath": env.TMP_PATH},
        {"name": SHM_VOLUME, "mountPath": env.SHM_PATH},
        *(_mount(volume) for volume in workers.volumes or ()),
    ]


def _volume(volume: Volume) -> Object:
    if volume.persistent_volume_claim is not None:
        claim = volume.persistent_volume_claim
        source = {"claimName": claim.claim_name, "readOnly": claim.read_only}
        return {"name": volume.name, "persistentVolumeClaim": source}
    if volume.config_map is not None:
        return {"name": volume.name, "configMap": volume.config_map.to_wire()}
    if volume.secret is not None:
        return {"name": volume.name, "secret": volume.secret.to_wire()}
    if volume.projected is not None:
        return {"name": volume.name, "projected": volume.projected.to_wire()}
    limit = volume.empty_dir.size_limit if volume.empty_dir else None
    return {"name": volume.name, "emptyDir": {"sizeLimit": str(limit)} if limit else {}}


def _mount(volume: Volume) -> Object:
    claim = volume.persistent_volume_claim
    files: SecretVolume | ConfigMapVolume | ProjectedVolume | None = (
        volume.secret or volume.config_map or volume.projected
    )
    read_only = files is not None or (claim is not None and claim.read_only)
    mount = {"name": volume.name, "mountPath": volume.mount_path}
    return {**mount, "readOnly": True} if read_only else mount
