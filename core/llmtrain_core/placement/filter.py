"""Which nodes can hold a block of a request, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot, tolerates

IN_USE = "in use"
"""Suffix of the cause for resources that pods of other jobs use."""
WITHHELD = "kept for a job ahead"
_OF_THE_STATE = "node.kubernetes.io/"
"""Prefix of taints that only repeat the condition of a node, such as `unschedulable`."""


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
            found[causes[0]] = found.get(causes[0], 0) + 1
        return found


def filter_nodes(request: Request, snapshot: Snapshot) -> FilterResult:
    """Divide the nodes of a snapshot into usable and refused ones."""
    wanted = {request.gpu_resource: request.gpus_per_node, **request.extra}
    usable, refused = [], []
    for node in snapshot.nodes:
        causes = tuple(_causes(request, wanted, snapshot, node))
        if causes:
            refused.append((node, causes))
        else:
            usable.append(node)
    return FilterResult(tuple(usable), tuple(refused))


def eligible(request: Request, snapshot: Snapshot) -> frozenset[str]:
    """Return the names of the nodes that could hold a block if they were empty."""
    empty = replace(snapshot, used={}, withheld=frozenset())
    return frozenset(node.name for node in filter_nodes(request, empty).usable)


def _causes(
    request: Request, wanted: Mapping[str, int], snapshot: Snapshot, node: Node
) -> Iterator[str]:
    """Yield the causes why a node cannot hold a block.

    The state of the node comes before its taints, which may only repeat it (a cordoned node is
    tainted as unschedulable). Resources that a node lacks come before resources in use.
    """
    selector = request.node_selector
    if selector and any(node.labels.get(key) != value for key, value in selector.items()):
        yield "node selector does not match"
    if node.name in request.too_small:
        yield "GPU memory too small"
    elif node.name in request.excluded:
        yield "excluded by the job"
    if not node.ready:
        yield "not ready"
    if node.cordoned:
        yield "cordoned"
    if node.taints and not tolerates(node, request.tolerations):
        repeats = all(taint.key.startswith(_OF_THE_STATE) for taint in node.taints)
        if not repeats or (node.ready and not node.cordoned):
            yield "taint not tolerated"
    for resource, amount in wanted.items():
        if node.allocatable.get(resource, 0) < amount:
            yield f"has fewer than {amount} {resource}"
        elif snapshot.free(node, resource) < amount:
            yield f"{resource} {IN_USE}"
    if node.name in snapshot.withheld:
        yield WITHHELD
