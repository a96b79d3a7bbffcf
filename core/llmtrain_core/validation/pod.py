"""Checks of the pods of a job: variables, volumes, memory and devices."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.api import env
from llmtrain_core.api.base import quantity_value
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.job import JobSpec
from llmtrain_core.api.workers import EnvVar, Volume
from llmtrain_core.images import TRAINER_PATHS
from llmtrain_core.validation.problem import Problem

MIN_SHM_SIZE = "1Mi"
"""A size of 0 would be no limit: Kubernetes reads it as an absent one."""


def pod_problems(spec: JobSpec) -> Iterator[Problem]:
    """Yield what a job may not set in its pods, and what contradicts itself there."""
    workers = spec.workers
    for index, variable in enumerate(workers.env or ()):
        yield from _variable_problems(f"spec.workers.env[{index}].name", variable)
    for index, volume in enumerate(workers.volumes or ()):
        field = f"spec.workers.volumes[{index}]"
        yield from _volume_problems(field, volume, own_image=workers.command is not None)
    yield from _shared_memory_problems(spec)
    yield from _resource_problems(spec)


def _variable_problems(field: str, variable: EnvVar) -> Iterator[Problem]:
    name = variable.name
    ours = name.startswith(env.PREFIX) and name not in env.SETTABLE
    if ours or name in env.OWNED:
        message = f"{name} is reserved for the pod contract"
        yield Problem(Reason.FORBIDDEN, field, message, "remove the variable")
    elif _chooses_devices(name):
        message = f"{name} tells the container runtime which devices of the node the pod gets"
        remedy = "remove the variable; the pod gets the devices that it requests"
        yield Problem(Reason.FORBIDDEN, field, message, remedy)


def _chooses_devices(name: str) -> bool:
    """Return True if a container runtime reads the variable."""
    if name in env.LIBRARY_VARIABLES:
        return False
    return name.startswith(env.RUNTIME_PREFIX) or name.endswith(env.RUNTIME_SUFFIX)


def _volume_problems(field: str, volume: Volume, *, own_image: bool) -> Iterator[Problem]:
    folder = _reserved_folder(volume.mount_path, own_image=own_image)
    if folder is not None:
        path, use = folder
        above = path.startswith(f"{volume.mount_path}/")
        yield Problem(
            Reason.FORBIDDEN,
            f"{field}.mountPath",
            f"{volume.mount_path} hides {path}, which {use}" if above else f"{path} {use}",
            "mount the volume elsewhere",
        )
    if volume.name.startswith(env.VOLUME_PREFIX):
        yield Problem(
            Reason.FORBIDDEN,
            f"{field}.name",
            f"names that start with {env.VOLUME_PREFIX} are reserved for the pod contract",
            "rename the volume",
        )


def _reserved_folder(path: str, *, own_image: bool) -> tuple[str, str] | None:
    """Return the first reserved folder at, above or below a path, and what reserves it.

    Paths have no empty segments, `.` or `..`. Folders of the trainer image count only for our
    trainer, because the layout of other images is not known.
    """
    reserved = [
        *((folder, "is reserved for the pod contract") for folder in env.OWNED_PATHS),
        *((folder, "is reserved for the container runtime") for folder in env.RUNTIME_PATHS),
    ]
    if not own_image:
        reserved += [(folder, "belongs to the trainer image") for folder in TRAINER_PATHS]
    for folder, use in reserved:
        if f"{path}/".startswith(f"{folder}/") or folder.startswith(f"{path}/"):
            return folder, use
    return None


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


def _resource_problems(spec: JobSpec) -> Iterator[Problem]:
    resources = spec.workers.resources
    requests, limits = (
        (resources and resources.requests) or {},
        (resources and resources.limits) or {},
    )
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
    for kind, amounts in (("requests", requests), ("limits", limits)):
        for resource in devices.keys() & amounts.keys():
            yield Problem(
                Reason.FORBIDDEN,
                f"spec.workers.resources.{kind}.{resource}",
                f"{resource} is set from {devices[resource]}",
                "remove the entry",
            )
    for resource in sorted(requests):
        if "/" in resource and limits.get(resource) != requests[resource]:
            yield Problem(
                Reason.INVALID_SPEC,
                f"spec.workers.resources.requests.{resource}",
                f"the request of the extended resource {resource} must equal its limit",
                "set the same amount under limits, or only the limit",
            )
        elif resource in limits and quantity_value(requests[resource]) > quantity_value(
            limits[resource]
        ):
            yield Problem(
                Reason.INVALID_SPEC,
                f"spec.workers.resources.requests.{resource}",
                f"{requests[resource]} is more than the limit of {limits[resource]}",
                "raise the limit or lower the request",
            )
