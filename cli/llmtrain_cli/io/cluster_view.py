"""Read a cluster, from files or from the current context of kubectl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from llmtrain_core.network import drivers_by_node
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.topology.inventory import Snapshot, node_from_raw, usage_from_pods
from llmtrain_core.topology.node_limit import within_limit

Raw = Mapping[str, Any]
RESOURCE_SLICES = "resourceslices.resource.k8s.io"


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
    drivers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Drivers of dynamic resource allocation by node."""


def read_cluster(
    sources: ClusterSources, fabric_name: str | None = None, with_jobs: bool = False
) -> ClusterView:
    """Read the cluster. `fabric_name` is the Fabric that a job refers to."""
    live = sources.nodes is None
    table = read_health_table(sources.node_health)
    if sources.nodes is None:
        nodes, slices = kubectl.get("nodes"), _slices_of_cluster()
    else:
        nodes, slices = read_nodes(sources.nodes)
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
        found = [node_from_raw(raw, table) for raw in nodes]
        inventory = within_limit(found, sources.max_excluded_percent)
        usage = usage_from_pods(pods)
        drivers = drivers_by_node(slices)
    except UNEXPECTED as error:
        raise CliError(
            f"--nodes, --pods: unexpected object: {error!r};"
            " print the list with kubectl get -o json"
        ) from error
    return ClusterView(snapshot_for(fabric, inventory, usage), pods, jobs, drivers)


def _slices_of_cluster() -> Sequence[Raw]:
    """Return the ResourceSlices, or nothing where the user may not list them."""
    try:
        return kubectl.get(RESOURCE_SLICES, optional=True)
    except CliError:
        return []


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
