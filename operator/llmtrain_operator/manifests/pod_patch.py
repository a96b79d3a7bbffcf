"""Merge patches into a pod: `workers.podPatch`, and what the operator adds for a network.

It checks that only what a job may change has changed.

The merge is the strategic merge of Kubernetes. Its keys of lists are those of core/v1 PodSpec
(`patchMergeKey`); lists without a key, such as `capabilities.add`, are replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from llmtrain_core.api import env
from llmtrain_core.api.pod_patch import PodPatchSpec
from llmtrain_core.api.workers import Workers
from llmtrain_core.topology.resources import is_device
from llmtrain_core.validation.containers import is_reserved_variable
from llmtrain_core.validation.pod_patch import PAGES_MEDIUM, page_media
from llmtrain_core.validation.volumes import overlaps
from llmtrain_operator.errors import OperatorError

Object = dict[str, Any]

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "env": "name",
    "hostAliases": "ip",
}
"""Lists whose items are merged, and the field that identifies an item."""

_NETWORK = frozenset({"hostNetwork", "dnsPolicy", "dnsConfig", "hostAliases"})
_LISTS = frozenset({"volumes", "containers", "initContainers"})
_POD_SECURITY = frozenset(
    {"runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "sysctls"}
)
_TRAINER_SECURITY = frozenset(
    {
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "privileged",
        "allowPrivilegeEscalation",
        "capabilities",
    }
)
"""What a patch may change."""


class PodPatchError(OperatorError):
    """A patch changes something of the operator. `field` is its path in the job."""

    def __init__(self, field: str):
        super().__init__(f"{field}: it belongs to the pod contract")
        self.field = field


def patched(pod: Object, workers: Workers, network: PodPatchSpec | None = None) -> Object:
    """Return the pod with the patch of its job, merged into what it gets for its network.

    Raises PodPatchError for a patch that changes what is the operator's.
    """
    if network is None and workers.pod_patch is None:
        return pod
    own = workers.pod_patch.spec if workers.pod_patch else PodPatchSpec()
    spec = strategic_merge(_left_to_network(network, workers, own), own.to_wire())
    sidecars = spec.get("initContainers") or ()
    if sidecars:
        default = sidecar_defaults(workers)
        spec["initContainers"] = [strategic_merge(default, each) for each in sidecars]
    _name_page_size(spec, page_media(workers, own))
    return apply_patch(pod, {"spec": spec})


def _left_to_network(network: PodPatchSpec | None, workers: Workers, own: PodPatchSpec) -> Object:
    """Return what a pod gets for its network, without what fields of the job have there.

    Volumes and init containers of the job replace those with the same name, and its mounts those at
    the same path.
    """
    spec: Object = {} if network is None else network.to_wire()
    volumes = {volume.name for volume in (*(workers.volumes or ()), *(own.volumes or ()))}
    paths = {volume.mount_path for volume in workers.volumes or ()}
    containers = {container.name for container in workers.init_containers or ()}
    for field, taken in (("volumes", volumes), ("initContainers", containers)):
        spec[field] = [item for item in spec.get(field) or () if item["name"] not in taken]
    for trainer in spec.get("containers") or ():
        mounts = trainer.get("volumeMounts") or ()
        trainer["volumeMounts"] = [item for item in mounts if item["mountPath"] not in paths]
    return spec


def _name_page_size(spec: Object, media: Collection[str]) -> None:
    """Name the size of the pages of volumes: the network may add pages of another one to the pod.

    The kubelet mounts no volume of the medium HugePages in a pod with two sizes.
    """
    for volume in spec.get("volumes") or ():
        directory = volume.get("emptyDir") or {}
        if directory.get("medium") == PAGES_MEDIUM and len(media) == 1:
            (directory["medium"],) = media


def apply_patch(pod: Object, patch: Mapping[str, Any]) -> Object:
    """Return the pod with a strategic merge patch. Raises PodPatchError as `patched`."""
    after = strategic_merge(pod, patch)
    for path in changes_of_contract(pod, after):
        raise PodPatchError(f"spec.workers.podPatch.{path}")
    return after


def sidecar_defaults(workers: Workers) -> Object:
    """Return the fields of a sidecar unless the job sets them: those of a restricted container."""
    policy = workers.image_pull_policy
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": bool(workers.read_only_root_filesystem),
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **({"imagePullPolicy": policy} if policy else {}),
    }


def strategic_merge(original: Mapping[str, Any], patch: Mapping[str, Any]) -> Object:
    """Return an object with a patch that has no directives and no nulls."""
    merged = dict(original)
    for key, value in patch.items():
        before = original.get(key)
        if isinstance(value, Mapping):
            merged[key] = strategic_merge(before if isinstance(before, Mapping) else {}, value)
        elif key in MERGE_KEYS:
            merged[key] = _merged_list(before or [], value, MERGE_KEYS[key])
        else:
            merged[key] = value
    return merged


def _merged_list(
    original: Sequence[Mapping[str, Any]], patch: Sequence[Mapping[str, Any]], key: str
) -> list[Object]:
    """Merge lists by a key. Items of the patch keep its order; new ones are as early as possible.

    An item that only the original has stays before the next item of both.
    """
    before = {item[key]: item for item in original}
    position = {name: index for index, name in enumerate(before)}
    own = {item[key] for item in patch}
    rest = [item for item in original if item[key] not in own]
    found: list[Object] = []
    for item in patch:
        while item[key] in position and rest and position[rest[0][key]] < position[item[key]]:
            found.append(dict(rest.pop(0)))
        found.append(strategic_merge(before.get(item[key], {}), item))
    return [*found, *map(dict, rest)]


def changes_of_contract(before: Object, after: Object) -> Iterator[str]:
    """Yield the paths that differ between a pod and the patched pod and are the operator's.

    Items of lists are named by their key, such as `spec.volumes[llmtrain-job]`.
    """
    yield from _differing(before, after, "", {"spec"})
    old, new = before["spec"], after["spec"]
    yield from _differing(old, new, "spec.", _NETWORK | _LISTS | {"securityContext"})
    security = "spec.securityContext."
    yield from _differing(old["securityContext"], new["securityContext"], security, _POD_SECURITY)
    yield from _list_changes(old, new, "volumes", "spec.", "name")
    yield from _container_changes(old["containers"], new["containers"])
    yield from _list_changes(old, new, "initContainers", "spec.", "name")
    names = {container["name"] for container in old.get("initContainers") or ()}
    for container in new.get("initContainers") or ():
        if container["name"] not in names:
            yield from _sidecar_changes(f"spec.initContainers[{container['name']}]", container)


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str, allowed: frozenset[str] | set[str]
) -> Iterator[str]:
    for key in sorted((old.keys() | new.keys()) - allowed):
        if old.get(key) != new.get(key):
            yield f"{path}{key}"


def _list_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], field: str, path: str, key: str
) -> Iterator[str]:
    """Yield the items of a list that a patch may only extend and that are not as before."""
    after = {item[key]: item for item in new.get(field) or ()}
    for item in old.get(field) or ():
        if after.get(item[key]) != item:
            yield f"{path}{field}[{item[key]}]"


def _container_changes(old: Sequence[Object], new: Sequence[Object]) -> Iterator[str]:
    before = {container["name"]: container for container in old}
    for container in new:
        path = f"spec.containers[{container['name']}]"
        own = before.get(container["name"])
        if own is None:
            yield path
            continue
        yield from _differing(own, container, f"{path}.", {"securityContext", "volumeMounts"})
        security, changed = own["securityContext"], container["securityContext"]
        yield from _differing(security, changed, f"{path}.securityContext.", _TRAINER_SECURITY)
        yield from _list_changes(own, container, "volumeMounts", f"{path}.", "mountPath")
        yield from _hidden_mounts(own, container, path)


def _hidden_mounts(own: Object, container: Object, path: str) -> Iterator[str]:
    """Yield the new mounts that hide a mount of the contract or reach a volume of it."""
    kept = {mount["mountPath"] for mount in own["volumeMounts"]}
    contract = {
        mount["mountPath"]
        for mount in own["volumeMounts"]
        if mount["name"].startswith(env.VOLUME_PREFIX)
    } | {env.TERMINATION_LOG_PATH, *env.RUNTIME_PATHS}
    for mount in container["volumeMounts"]:
        place = mount["mountPath"]
        if place in kept:
            continue
        if mount["name"].startswith(env.VOLUME_PREFIX):
            yield f"{path}.volumeMounts[{place}].name"
        if any(overlaps(place, folder) for folder in contract):
            yield f"{path}.volumeMounts[{place}].mountPath"


def _sidecar_changes(path: str, container: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a new init container may not have."""
    if container.get("restartPolicy") != "Always":
        yield f"{path}.restartPolicy"
    for kind, found in (container.get("resources") or {}).items():
        yield from (f"{path}.resources.{kind}.{name}" for name in found if is_device(name))
    for variable in container.get("env") or ():
        if is_reserved_variable(variable["name"]):
            yield f"{path}.env[{variable['name']}]"
    for mount in container.get("volumeMounts") or ():
        place = mount["mountPath"]
        if mount["name"].startswith(env.VOLUME_PREFIX):
            yield f"{path}.volumeMounts[{place}].name"
        if any(overlaps(place, folder) for folder in env.RUNTIME_PATHS):
            yield f"{path}.volumeMounts[{place}].mountPath"
