"""Checks of `workers.podPatch`: what it may not change, and what contradicts itself in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.defaults import HUGE_PAGES
from llmtrain_core.api.pod_patch import (
    Capabilities,
    ContainerSecurity,
    HostAlias,
    PatchMount,
    PodPatchSpec,
    Sidecar,
)
from llmtrain_core.api.workers import Workers
from llmtrain_core.validation.containers import init_container_problems
from llmtrain_core.validation.problem import Problem
from llmtrain_core.validation.volumes import overlaps, reserved_folder, volume_name_problems

PATCH = "spec.workers.podPatch.spec"
PAGES_MEDIUM = "HugePages"
"""Medium of a volume with the huge pages of the pod, if it has one size of them."""
_KERNEL_FOLDERS = ("/dev", "/proc", "/sys")
_CONTRACT_DEVICES = (env.SHM_PATH, env.TERMINATION_LOG_PATH)


def patch_problems(workers: Workers) -> Iterator[Problem]:
    """Yield what is wrong with the patch of the pods."""
    if workers.pod_patch is None:
        return
    spec = workers.pod_patch.spec
    yield from _network_problems(spec)
    for index, alias in enumerate(spec.host_aliases or ()):
        yield from _alias_problems(f"{PATCH}.hostAliases[{index}]", alias)
    yield from _volume_problems(workers, spec)
    yield from _user_problems(spec)
    for field, security in container_security(spec):
        yield from _capability_problems(f"{field}.capabilities", security.capabilities)
        yield from _escalation_problems(field, security)
    for index, trainer in enumerate(spec.containers or ()):
        mounts = trainer.volume_mounts or ()
        field = f"{PATCH}.containers[{index}].volumeMounts"
        yield from _mount_problems(field, mounts, workers, spec)
        yield from _trainer_mount_problems(field, mounts, workers, spec)
    for index, sidecar in enumerate(spec.init_containers or ()):
        yield from _sidecar_problems(f"{PATCH}.initContainers[{index}]", sidecar, workers, spec)


def container_security(spec: PodPatchSpec) -> Iterator[tuple[str, ContainerSecurity]]:
    """Yield the security settings of each container, with their paths."""
    for index, trainer in enumerate(spec.containers or ()):
        if trainer.security_context is not None:
            yield f"{PATCH}.containers[{index}].securityContext", trainer.security_context
    for index, sidecar in enumerate(spec.init_containers or ()):
        if sidecar.security_context is not None:
            yield f"{PATCH}.initContainers[{index}].securityContext", sidecar.security_context


def _network_problems(spec: PodPatchSpec) -> Iterator[Problem]:
    sysctls = (spec.security_context and spec.security_context.sysctls) or ()
    if spec.host_network and spec.dns_policy not in ("ClusterFirstWithHostNet", "None"):
        yield Problem(
            Reason.INVALID_SPEC,
            f"{PATCH}.dnsPolicy",
            "pods in the network of the node find no other pod by name",
            "set it to ClusterFirstWithHostNet",
        )
    if spec.dns_policy == "None" and not (spec.dns_config and spec.dns_config.nameservers):
        yield Problem(
            Reason.INVALID_SPEC,
            f"{PATCH}.dnsConfig.nameservers",
            "dnsPolicy None needs a name server",
            "name the DNS server of the cluster, or choose another dnsPolicy",
        )
    for index, sysctl in enumerate(sysctls):
        if spec.host_network and sysctl.name.startswith("net."):
            yield Problem(
                Reason.INVALID_SPEC,
                f"{PATCH}.securityContext.sysctls[{index}].name",
                f"{sysctl.name} would be that of the node",
                "remove it, or hostNetwork",
            )


def _alias_problems(field: str, alias: HostAlias) -> Iterator[Problem]:
    for index, name in enumerate(alias.hostnames):
        if name == "localhost" or name.endswith(".svc") or ".svc." in name:
            yield Problem(
                Reason.FORBIDDEN,
                f"{field}.hostnames[{index}]",
                f"{name} is a name by which pods find each other or themselves",
                "remove the name",
            )


def _volume_problems(workers: Workers, spec: PodPatchSpec) -> Iterator[Problem]:
    known = {volume.name for volume in workers.volumes or ()}
    for index, volume in enumerate(spec.volumes or ()):
        field = f"{PATCH}.volumes[{index}]"
        reserved = [*volume_name_problems(field, volume.name)]
        yield from reserved
        if volume.name in known and not reserved:
            message = f"{volume.name} is a volume of workers.volumes"
            yield Problem(Reason.FORBIDDEN, f"{field}.name", message, "rename the volume")
        medium = (volume.empty_dir and volume.empty_dir.medium) or ""
        if medium.startswith(PAGES_MEDIUM) and not _has_pages(medium, workers, spec):
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}.emptyDir.medium",
                f"no container of the pod requests huge pages for {medium}",
                "set hugepages-SIZE in workers.resources.limits; HugePages needs exactly one size",
            )


def _has_pages(medium: str, workers: Workers, spec: PodPatchSpec) -> bool:
    """Return whether the pod requests the pages of a medium, as the kubelet requires."""
    media = page_media(workers, spec)
    return len(media) == 1 if medium == PAGES_MEDIUM else medium in media


def page_media(workers: Workers, spec: PodPatchSpec) -> frozenset[str]:
    """Return the media of the huge pages that a job requests, such as HugePages-2Mi."""
    containers = (workers, *(workers.init_containers or ()), *(spec.init_containers or ()))
    return frozenset(
        name.replace(HUGE_PAGES, f"{PAGES_MEDIUM}-")
        for container in containers
        for name in (container.resources and container.resources.limits) or ()
        if name.startswith(HUGE_PAGES)
    )


def _user_problems(spec: PodPatchSpec) -> Iterator[Problem]:
    """Yield the users that are root while the kubelet refuses root."""
    pod = spec.security_context
    non_root = True if pod is None or pod.run_as_non_root is None else pod.run_as_non_root
    places = [(f"{PATCH}.securityContext", pod)] if pod else []
    for field, settings in [*places, *container_security(spec)]:
        own = settings.run_as_non_root
        if settings.run_as_user == 0 and (non_root if own is None else own):
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}.runAsUser",
                "the kubelet starts no container as root while runAsNonRoot is true",
                "set runAsNonRoot to false beside it, or choose another user",
            )


def _capability_problems(field: str, capabilities: Capabilities | None) -> Iterator[Problem]:
    for kind in ("add", "drop"):
        for index, name in enumerate(getattr(capabilities, kind, None) or ()):
            if name.startswith("CAP_"):
                yield Problem(
                    Reason.INVALID_SPEC,
                    f"{field}.{kind}[{index}]",
                    f"{name} has the prefix CAP_, which container runtimes add",
                    f"write {name.removeprefix('CAP_')}",
                )


def _escalation_problems(field: str, security: ContainerSecurity) -> Iterator[Problem]:
    added = (security.capabilities and security.capabilities.add) or ()
    needs = "privileged" if security.privileged else ""
    needs = needs or ("the capability SYS_ADMIN" if "SYS_ADMIN" in added else "")
    if needs and not security.allow_privilege_escalation:
        yield Problem(
            Reason.INVALID_SPEC,
            f"{field}.allowPrivilegeEscalation",
            f"Kubernetes refuses {needs} without it",
            "set it to true",
        )


def _mount_problems(
    field: str, mounts: Sequence[PatchMount], workers: Workers, spec: PodPatchSpec
) -> Iterator[Problem]:
    """Yield the mounts of volumes that do not exist or that are not of the job, and duplicates."""
    known = {volume.name for volume in (*(workers.volumes or ()), *(spec.volumes or ()))}
    seen: set[str] = set()
    for index, mount in enumerate(mounts):
        if mount.name.startswith(env.VOLUME_PREFIX):
            yield Problem(
                Reason.FORBIDDEN,
                f"{field}[{index}].name",
                f"{mount.name} is a volume of the pod contract",
                "mount a volume of workers.volumes or of the patch",
            )
        elif mount.name not in known:
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}[{index}].name",
                f"the job has no volume {mount.name}",
                "name a volume of workers.volumes or of the patch",
            )
        if mount.mount_path in seen:
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}[{index}].mountPath",
                f"two volumes are mounted at {mount.mount_path}",
                "mount one of them elsewhere",
            )
        seen.add(mount.mount_path)


def _trainer_mount_problems(
    field: str, mounts: Sequence[PatchMount], workers: Workers, spec: PodPatchSpec
) -> Iterator[Problem]:
    taken = {volume.mount_path for volume in workers.volumes or ()}
    of_node = spec.host_path_volumes
    for index, mount in enumerate(mounts):
        path = mount.mount_path
        if path in taken:
            why = f"a volume of workers.volumes is mounted at {path}"
        elif mount.name in of_node and _is_below_devices(path):
            continue
        else:
            folder = reserved_folder(path, own_image=workers.command is not None)
            if folder is None:
                continue
            why = f"{path} overlaps {folder[0]}, which {folder[1]}"
        remedy = "mount the volume elsewhere"
        yield Problem(Reason.FORBIDDEN, f"{field}[{index}].mountPath", why, remedy)


def _is_below_devices(path: str) -> bool:
    """Return whether devices of the node can be mounted at a path of the trainer."""
    contract = any(overlaps(path, folder) for folder in _CONTRACT_DEVICES)
    return path.startswith("/dev/") and not contract


def _sidecar_problems(
    field: str, sidecar: Sidecar, workers: Workers, spec: PodPatchSpec
) -> Iterator[Problem]:
    yield from init_container_problems(field, sidecar)
    if any(sidecar.name == other.name for other in workers.init_containers or ()):
        message = f"{sidecar.name} is a container of workers.initContainers"
        yield Problem(Reason.FORBIDDEN, f"{field}.name", message, "rename the sidecar")
    mounts = sidecar.volume_mounts or ()
    yield from _mount_problems(f"{field}.volumeMounts", mounts, workers, spec)
    for index, mount in enumerate(mounts):
        path = mount.mount_path
        hidden = [folder for folder in env.RUNTIME_PATHS if overlaps(path, folder)]
        hidden += [f for f in _KERNEL_FOLDERS if path == f or f.startswith(f"{path}/")]
        if hidden:
            yield Problem(
                Reason.FORBIDDEN,
                f"{field}.volumeMounts[{index}].mountPath",
                f"{path} overlaps {hidden[0]}, which is reserved for the container runtime",
                "mount the volume elsewhere",
            )
