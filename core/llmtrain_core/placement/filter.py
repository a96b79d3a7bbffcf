"""Whether the pod of a job can start on a node now, and why not.

The queue, restarts, spare nodes, the creation of pods and relocation ask the same question here. So
a gang is never pinned to a node that kube-scheduler would refuse for a reason that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

from llmtrain_core.devices.demand import is_claimed
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot, tolerates
from llmtrain_core.topology.resources import amount_text, is_device, missing_text

IN_USE = "in use"
"""Suffix of the cause for resources that pods of other jobs use."""
WITHHELD = "kept for a job ahead"
MAX_FINDINGS = 3
"""Findings about the health of one node that are named at most."""
AVOIDED = "avoided for "
"""Start of the cause for a finding about the health of a node."""
_OF_THE_STATE = "node.kubernetes.io/"
"""Prefix of taints that only repeat the condition of a node, such as `unschedulable`."""

Used = Mapping[tuple[str, str], int]
"""Amount in use by node and resource."""


@dataclass(frozen=True, slots=True)
class FilterResult:
    """Nodes that can hold a block of a request, and nodes that cannot."""

    usable: tuple[Node, ...]
    refused: tuple[tuple[Node, tuple[str, ...]], ...]
    """Nodes that cannot, each with all causes in order of importance."""

    def counts(self) -> dict[str, int]:
        """Count the refused nodes by their first cause."""
        found: dict[str, int] = {}
        for _, causes in self.refused:
            cause = _without_evidence(causes[0])
            found[cause] = found.get(cause, 0) + 1
        return found


def filter_nodes(request: Request, snapshot: Snapshot) -> FilterResult:
    """Divide the nodes of a snapshot into usable and refused ones."""
    needs, used, withheld = request.needs, snapshot.used, snapshot.withheld
    usable, refused = [], []
    for node in snapshot.nodes:
        causes = _obstacles(request, needs, node, used)
        if node.name in withheld:
            causes = (*causes, WITHHELD)
        if causes:
            refused.append((node, causes))
        else:
            usable.append(node)
    return FilterResult(tuple(usable), tuple(refused))


def eligible(request: Request, snapshot: Snapshot) -> frozenset[str]:
    """Return the names of the nodes that could hold a block if they were empty."""
    empty = replace(snapshot, used={}, withheld=frozenset())
    return frozenset(node.name for node in filter_nodes(request, empty).usable)


def start_obstacles(request: Request, node: Node, used: Used) -> tuple[str, ...]:
    """Return why a pod of the request cannot start on a node now; empty if it can.

    The most important cause is first. `used` is what others use.
    """
    return _obstacles(request, request.needs, node, used)


def obstacles_text(request: Request, node: Node, used: Used) -> str:
    """Return why a pod cannot start on a node, with the amounts that are missing."""
    needs = request.needs
    state = _state_obstacles(request, node)
    free = [(name, max(0, node.total(name) - used.get((node.name, name), 0))) for name in needs]
    missing = missing_text(needs, free)
    return "; ".join([*state, *([missing] if missing else [])])


def _obstacles(
    request: Request, needs: Mapping[str, int], node: Node, used: Used
) -> tuple[str, ...]:
    """Return the causes why a node cannot hold a block: first its state, then resources.

    A cycle asks this for every node and job, and most nodes have no obstacle.
    """
    name, allocatable = node.name, node.allocatable
    found: list[str] = _state_obstacles(request, node)
    for resource, amount in needs.items():
        total = allocatable.get(resource)
        if total is None:
            total = node.total(resource)
        if total - used.get((name, resource), 0) < amount:
            found.append(lack_text(resource, amount, total))
    return tuple(found)


def lack_text(resource: str, amount: int, total: int) -> str:
    """Return the cause for a resource that a node lacks: in use, or never there."""
    if total >= amount:
        return f"{resource} {IN_USE}"
    more = "fewer" if is_device(resource) or is_claimed(resource) else "less"
    return f"has {more} than {amount_text(resource, amount)} {resource}"


def _findings(node: Node) -> list[str]:
    """Return the findings that keep jobs from a node. Tolerations do not change its health."""
    return [f"{AVOIDED}{finding.text}" for finding in islice(node.avoided_for(), MAX_FINDINGS)]


def _without_evidence(cause: str) -> str:
    """Return a cause for the count of nodes: the evidence may differ from node to node."""
    return cause.split(": ", 1)[0] if cause.startswith(AVOIDED) else cause


def _state_obstacles(request: Request, node: Node) -> list[str]:
    """Return the causes that are not about resources.

    The state of the node comes before its taints, which may only repeat it (a cordoned node is
    tainted as unschedulable).
    """
    found: list[str] = []
    selector, labels = request.node_selector, node.labels
    if selector and any(labels.get(key) != value for key, value in selector.items()):
        found.append("node selector does not match")
    if node.name in request.too_small:
        found.append("GPU memory too small")
    elif node.name in request.excluded:
        found.append("excluded by the job")
    if request.network is not None and node.name in request.network.excluded:
        found.append(request.network.excluded[node.name])
    if not node.ready:
        found.append("not ready")
    if node.cordoned:
        found.append("cordoned")
    if node.health:
        found += _findings(node)
    if node.taints and not tolerates(node, request.tolerations):
        repeats = all(taint.key.startswith(_OF_THE_STATE) for taint in node.taints)
        if not repeats or (node.ready and not node.cordoned):
            found.append("taint not tolerated")
    return found
