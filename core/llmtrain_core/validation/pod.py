"""Checks of the pods of a job: volumes, memory and devices."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.api.base import quantity_value
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.job import JobSpec
from llmtrain_core.api.volumes import Volume
from llmtrain_core.validation.containers import (
    environment_problems,
    init_container_problems,
    resource_problems,
)
from llmtrain_core.validation.device_claims import claim_problems
from llmtrain_core.validation.pod_metadata import metadata_problems
from llmtrain_core.validation.pod_patch import patch_problems
from llmtrain_core.validation.problem import Problem
from llmtrain_core.validation.volumes import reserved_folder, volume_name_problems

MIN_SHM_SIZE = "1Mi"
"""A size of 0 would be no limit: Kubernetes reads it as an absent one."""
_WITHOUT_RDMA = frozenset({"tcpxo", "tcpx"})
"""Profiles of networks over TCP that have devices of their own."""


def pod_problems(spec: JobSpec) -> Iterator[Problem]:
    """Yield what a job may not set in its pods, and what contradicts itself there."""
    workers = spec.workers
    yield from environment_problems("spec.workers", workers.env, workers.env_from)
    for index, container in enumerate(workers.init_containers or ()):
        yield from init_container_problems(f"spec.workers.initContainers[{index}]", container)
    yield from metadata_problems(workers)
    for index, volume in enumerate(workers.volumes or ()):
        field = f"spec.workers.volumes[{index}]"
        yield from _volume_problems(field, volume, own_image=workers.command is not None)
    yield from _shared_memory_problems(spec)
    yield from _device_problems(spec)
    yield from claim_problems(spec)
    yield from resource_problems("spec.workers.resources", workers.resources)
    yield from patch_problems(workers)


def _volume_problems(field: str, volume: Volume, *, own_image: bool) -> Iterator[Problem]:
    folder = reserved_folder(volume.mount_path, own_image=own_image)
    if folder is not None:
        path, use = folder
        above = path.startswith(f"{volume.mount_path}/")
        yield Problem(
            Reason.FORBIDDEN,
            f"{field}.mountPath",
            f"{volume.mount_path} hides {path}, which {use}" if above else f"{path} {use}",
            "mount the volume elsewhere",
        )
    yield from volume_name_problems(field, volume.name)


def _shared_memory_problems(spec: JobSpec) -> Iterator[Problem]:
    size, resources = spec.workers.shm_size, spec.workers.resources
    limit = ((resources and resources.limits) or {}).get("memory")
    if quantity_value(size) < quantity_value(MIN_SHM_SIZE):
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.workers.shmSize",
            f"{size} is less than {MIN_SHM_SIZE}",
            "set the memory that the ranks of a pod share, such as 1Gi",
        )
    elif limit is not None and quantity_value(size) >= quantity_value(limit):
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.workers.shmSize",
            f"{size} of shared memory leave nothing of the memory limit of {limit}",
            "lower shmSize, or raise workers.resources.limits.memory",
        )


def _device_problems(spec: JobSpec) -> Iterator[Problem]:
    resources = spec.workers.resources
    devices = {spec.workers.gpu_resource: "workers.gpusPerNode"}
    rdma = spec.network.rdma if spec.network else None
    if rdma is not None and rdma.resource in devices:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.network.rdma.resource",
            f"{rdma.resource} is workers.gpuResource",
            "name the resource of the RDMA devices",
        )
    elif rdma is not None:
        devices[rdma.resource] = "network.rdma.count"
    if rdma is not None and spec.network and spec.network.profile in _WITHOUT_RDMA:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.network.rdma",
            f"profile {spec.network.profile} has no devices of RDMA",
            "remove network.rdma, or name the profile of these devices",
        )
    for kind, amounts in (
        ("requests", (resources and resources.requests) or {}),
        ("limits", (resources and resources.limits) or {}),
    ):
        for resource in devices.keys() & amounts.keys():
            yield Problem(
                Reason.FORBIDDEN,
                f"spec.workers.resources.{kind}.{resource}",
                f"{resource} is set from {devices[resource]}",
                "remove the entry",
            )
