"""Which nodes can hold a block of a request, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot, tolerates

IN_USE = "in use"
"""How the cause ends when pods of others stand in the way."""
WITHHELD = "kept for a job ahead"
_OF_THE_STATE = "node.kubernetes.io/"
"""Prefix of taints that only repeat the state of a node, such as `unschedulable`."""


@dataclass(frozen=True, slots=True)
class Screening:
    """The nodes of a snapshot, sorted out."""

    usable: tuple[Node, ...]
    refused: tuple[tuple[Node, tuple[str, ...]], ...]
    """Nodes that are left out, each with all causes, the first one first."""

    def counts(self) -> dict[str, int]:
        """Count the nodes that are left out by cause."""
        found: dict[str, int] = {}
        for _, causes in self.refused:
            found[causes[0]] = found.get(causes[0], 0) + 1
        return found


def screen(request: Request, snapshot: Snapshot) -> Screening:
    """Sort out the nodes of a snapshot."""
    wanted = {request.gpu_resource: request.gpus_per_node, **request.extra}
    usable, refused = [], []
    for node in snapshot.nodes:
        causes = tuple(_causes(request, wanted, snapshot, node))
        if causes:
            refused.append((node, causes))
        else:
            usable.append(node)
    return Screening(tuple(usable), tuple(refused))


def eligible(request: Request, snapshot: Snapshot) -> frozenset[str]:
    """Names of the nodes that could hold a block if nothing ran on them."""
    empty = replace(snapshot, used={}, withheld=frozenset())
    return frozenset(node.name for node in screen(request, empty).usable)


def _causes(
    request: Request, wanted: Mapping[str, int], snapshot: Snapshot, node: Node
) -> Iterator[str]:
    """Yield why one node cannot hold a block.

    The state of the node comes before its taints, which may only repeat it (a cordoned node is
    tainted as unschedulable). What a node never has comes before what is in use.
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
