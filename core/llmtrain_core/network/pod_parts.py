"""What the operator adds to pods for GPUDirect-TCPXO and GPUDirect-TCPX, and what it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llmtrain_core.api.pod_patch import ContainerSecurity, PodPatchSpec, Sidecar, TrainerPatch
from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.request import NetworkRequest
from llmtrain_core.network.rows import INTERFACES, PodParts, Value
from llmtrain_core.network.settings import ANNOTATIONS_FIELD, JOB, PATCH_FIELD, Kind, Setting

NODE_NETWORK = "networking.gke.io.networks/"
"""Prefix of the resources by which GKE shows the networks of a node, one for each name."""
_ADDRESSES = ".IP"
"""End of a second resource of each network: its addresses."""


def missing(facts: NodeFacts, request: NetworkRequest, parts: PodParts) -> str:
    """Return what pods lack to have these parts, as the end of a need; empty if nothing."""
    if request.host_network:
        return ", in pods without hostNetwork"
    if not facts.amount(request.gpu_resource) == request.gpus_per_node == parts.gpus:
        return f", in pods with all {parts.gpus} GPUs of their nodes (workers.gpusPerNode)"
    found = len(_networks(facts))
    if INTERFACES not in request.gke_annotations and found != parts.networks:
        return (
            f", and {parts.networks} networks besides the default one (the node shows {found}, as"
            f" {NODE_NETWORK}NAME; set {INTERFACES} in workers.podAnnotations)"
        )
    return ""


def part_settings(
    facts: NodeFacts, request: NetworkRequest, row: str, parts: PodParts
) -> Iterator[Setting]:
    """Yield what pods get of these parts. Annotations and sidecars of the job take precedence."""
    for item in (*parts.annotations, _interfaces(facts, parts)):
        own = request.gke_annotations.get(item.name)
        if own is not None:
            yield Setting(Kind.ANNOTATION, item.name, own, ANNOTATIONS_FIELD, JOB)
        else:
            yield Setting(Kind.ANNOTATION, item.name, item.value, row, item.source)
    for sidecar in parts.patch.init_containers or ():
        image = request.sidecars.get(sidecar.name)
        if image is not None:
            yield Setting(Kind.SIDECAR, sidecar.name, image, PATCH_FIELD, JOB)
        else:
            yield Setting(Kind.SIDECAR, sidecar.name, sidecar.image, row, parts.source)
    for path, places in _mounted_paths(parts.patch).items():
        yield Setting(Kind.HOST_PATH, path, ", ".join(places), row, parts.source)
    for container in _containers(parts.patch):
        if (text := _security_text(container.security_context)) != "":
            yield Setting(Kind.SECURITY, container.name, text, row, parts.source)


def _networks(facts: NodeFacts) -> list[str]:
    """Return the names of the networks that a node has besides the default one."""
    names = [name.removeprefix(NODE_NETWORK) for name in facts.resources(NODE_NETWORK)]
    found = [name for name in names if name != "default" and not name.endswith(_ADDRESSES)]
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which vpc2 comes before vpc10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _interfaces(facts: NodeFacts, parts: PodParts) -> Value:
    """Return the interfaces of a pod: eth0 in the default network, and one in each other one."""
    names = ["default", *_networks(facts)]
    items = [{"interfaceName": f"eth{i}", "network": name} for i, name in enumerate(names)]
    return Value(INTERFACES, json.dumps(items, separators=(",", ":")), parts.networks_source)


def _containers(patch: PodPatchSpec) -> tuple[TrainerPatch | Sidecar, ...]:
    return (*(patch.containers or ()), *(patch.init_containers or ()))


def _mounted_paths(patch: PodPatchSpec) -> dict[str, list[str]]:
    """Return where each path of the node is mounted, as `CONTAINER:PATH`."""
    found: dict[str, list[str]] = {}
    for volume in patch.volumes or ():
        if volume.host_path is not None:
            found[volume.host_path.path] = [
                f"{container.name}:{mount.mount_path}"
                for container in _containers(patch)
                for mount in container.volume_mounts or ()
                if mount.name == volume.name
            ]
    return found


def _security_text(security: ContainerSecurity | None) -> str:
    if security is None:
        return ""
    added = (security.capabilities and security.capabilities.add) or ()
    root = ["user 0"] if security.run_as_user == 0 else []
    return ", ".join([*root, *(f"capability {name}" for name in added)])
