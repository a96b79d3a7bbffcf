"""The cluster that a command looks at: lists in files, or the current context of kubectl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain_cli.errors import CliError
from llmtrain_cli.io import kubectl
from llmtrain_cli.io.files import fabric_of, read_fabric, read_items, snapshot_for
from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.topology.inventory import Snapshot, node_from_raw, usage_from_pods

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a command reads from: files, or the cluster if no nodes are given."""

    nodes: str | None = None
    pods: str | None = None
    jobs: str | None = None
    fabric: str | None = None
    """A Fabric's file or a preset; None: the cluster's Fabric, else what labels show."""

    def __post_init__(self) -> None:
        for option in ("pods", "jobs"):
            if self.nodes is None and getattr(self, option) is not None:
                raise CliError(
                    f"--{option}: needs --nodes too; without --nodes everything is read from the"
                    " current context of kubectl"
                )


@dataclass(frozen=True, slots=True)
class View:
    """Nodes, what is in use on them, and the raw objects that tell whose it is."""

    snapshot: Snapshot
    pods: Sequence[Raw]
    jobs: Sequence[Raw]


def look(sources: Sources, fabric_name: str | None = None, with_jobs: bool = False) -> View:
    """Read the cluster. `fabric_name` is the Fabric that a job asks for."""
    live = sources.nodes is None
    nodes = kubectl.get("nodes") if sources.nodes is None else read_items(sources.nodes, "Node")
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
        inventory = [node_from_raw(raw) for raw in nodes]
        usage = usage_from_pods(pods)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CliError(
            f"--nodes, --pods: an object is not as kubectl prints it: {error!r};"
            " print the list with kubectl get -o json"
        ) from error
    return View(snapshot_for(fabric, inventory, usage), pods, jobs)


def _listed(path: str | None, kind: str) -> list[Raw]:
    return [] if path is None else read_items(path, kind)


def _fabric_of_cluster(name: str | None) -> FabricSpec | None:
    """Return the named Fabric of the cluster, else its default one, else None."""
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
