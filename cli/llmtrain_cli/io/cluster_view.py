"""Read a cluster, from files or from the current context of kubectl."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain_cli.errors import CliError
from llmtrain_cli.io import kubectl
from llmtrain_cli.io.files import (
    UNEXPECTED,
    fabric_of,
    read_fabric,
    read_health_table,
    read_items,
    read_nodes,
    snapshot_for,
)
from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.devices.capacity import DeviceClasses
from llmtrain_core.devices.demand import DeviceKey
from llmtrain_core.devices.records import (
    ClaimRecord,
    SliceRecord,
    claim_record,
    class_record,
    slice_record,
)
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.topology.inventory import (
    Snapshot,
    held_by_pod,
    node_from_raw,
    usage_from_pods,
)
from llmtrain_core.topology.node_devices import devices_of_nodes
from llmtrain_core.topology.node_limit import within_limit

Raw = Mapping[str, Any]
_DEVICES = {
    "ResourceSlice": "resourceslices.resource.k8s.io",
    "DeviceClass": "deviceclasses.resource.k8s.io",
    "ResourceClaim": "resourceclaims.resource.k8s.io",
}


@dataclass(frozen=True, slots=True)
class ClusterSources:
    """The files to read; the cluster is read if there is no file of nodes."""

    nodes: str | None = None
    pods: str | None = None
    jobs: str | None = None
    fabric: str | None = None
    """File of a Fabric, or a preset. None: the cluster's Fabric, else detected from labels."""
    node_health: str | None = None
    """File with changes of the node health table."""
    max_excluded_percent: float = MAX_EXCLUDED_PERCENT
    """Share of the nodes, in percent, that jobs avoid at most for their health."""

    def __post_init__(self) -> None:
        for option in ("pods", "jobs"):
            if self.nodes is None and getattr(self, option) is not None:
                raise CliError(
                    f"--{option}: needs --nodes too; without --nodes everything is read from the"
                    " current context of kubectl"
                )


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Nodes with the resources in use, and the pods and jobs that use them."""

    snapshot: Snapshot
    pods: Sequence[Raw]
    jobs: Sequence[Raw]
    classes: DeviceClasses = field(default_factory=DeviceClasses)


def read_cluster(
    sources: ClusterSources,
    fabric_name: str | None = None,
    with_jobs: bool = False,
    devices: Collection[DeviceKey] = (),
) -> ClusterView:
    """Read the cluster. `fabric_name` is the Fabric that a job refers to, `devices` it claims."""
    live = sources.nodes is None
    table = read_health_table(sources.node_health)
    listed = _nodes_of_cluster() if sources.nodes is None else read_nodes(sources.nodes)
    pods = kubectl.get("pods") if live else _listed(sources.pods, "Pod")
    jobs: Sequence[Raw] = []
    if with_jobs:
        jobs = (
            kubectl.get("llmtrainingjobs.llmtrain.dev", optional=True)
            if live
            else _listed(sources.jobs, "LLMTrainingJob")
        )
    fabric: FabricSpec | None = None
    if sources.fabric is not None:
        fabric = read_fabric(sources.fabric)
    elif live:
        fabric = _fabric_of_cluster(fabric_name)
    try:
        found = [node_from_raw(raw, table) for raw in listed["Node"]]
        inventory = within_limit(found, sources.max_excluded_percent)
        classes = DeviceClasses(map(class_record, listed["DeviceClass"]))
        requests = {pod["metadata"].get("uid", ""): held_by_pod(pod) for pod in pods}
        with_devices, claimed = devices_of_nodes(
            inventory, *slices_and_claims(listed), devices, classes, requests
        )
        usage = [*usage_from_pods(pods), *claimed]
    except UNEXPECTED as error:
        raise CliError(
            f"--nodes, --pods: unexpected object: {error!r};"
            " print the list with kubectl get -o json"
        ) from error
    return ClusterView(snapshot_for(fabric, with_devices, usage), pods, jobs, classes)


def slices_and_claims(
    listed: Mapping[str, Sequence[Raw]],
) -> tuple[list[SliceRecord], list[ClaimRecord]]:
    """Return the ResourceSlices and allocated ResourceClaims among objects by kind."""
    slices, claims = (
        map(slice_record, listed["ResourceSlice"]),
        map(claim_record, listed["ResourceClaim"]),
    )
    return [each for each in slices if each], [each for each in claims if each]


def _nodes_of_cluster() -> dict[str, Sequence[Raw]]:
    """Return the nodes, and what is known of their devices.

    The user may not list it, or the cluster may not have it.
    """
    found: dict[str, Sequence[Raw]] = {"Node": kubectl.get("nodes")}
    for kind, plural in _DEVICES.items():
        try:
            found[kind] = kubectl.get(plural, optional=True)
        except CliError:
            found[kind] = []
    return found


def _listed(path: str | None, kind: str) -> list[Raw]:
    return [] if path is None else read_items(path, kind)


def _fabric_of_cluster(name: str | None) -> FabricSpec | None:
    """Return the named Fabric of the cluster, or the default Fabric, or None."""
    wanted = name or FABRIC_NAME
    for raw in kubectl.get("fabrics.llmtrain.dev", optional=True):
        if raw["metadata"]["name"] == wanted:
            return fabric_of(raw, f"Fabric {wanted}")
    if name is not None:
        raise CliError(
            f"spec.topology.fabric: no Fabric is named {name!r} in the cluster; create it, or pass"
            " --fabric"
        )
    return None
