"""Nodes with room for a block, decided without the product's own filters."""

from __future__ import annotations

from collections.abc import Iterable

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Node, Snapshot

Path = tuple[str, ...]


def free_paths(request: Request, snapshot: Snapshot) -> list[Path]:
    """Return the paths of nodes that could take one block now, by path as strings."""
    return sorted(snapshot.path(node) for node in snapshot.nodes if _takes(request, snapshot, node))


def by_domain(paths: Iterable[Path], depth: int) -> dict[Path, list[Path]]:
    """Group paths by their first `depth` domains; depth 0 is the whole cluster."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(path[:depth], []).append(path)
    return groups


def depth_of(snapshot: Snapshot, level: str) -> int:
    """Return how many domains name a domain of the level: 1 for the farthest one."""
    return [each.name for each in snapshot.levels].index(level) + 1


def _takes(request: Request, snapshot: Snapshot, node: Node) -> bool:
    wanted = {request.gpu_resource: request.gpus_per_node, **request.extra}
    return (
        node.ready
        and not node.cordoned
        and node.name not in request.excluded
        and node.name not in snapshot.withheld
        and all(node.labels.get(key) == value for key, value in request.node_selector.items())
        and all(any(t.tolerated_by(each) for each in request.tolerations) for t in node.taints)
        and all(
            node.allocatable.get(name, 0) - snapshot.used.get((node.name, name), 0) >= amount
            for name, amount in wanted.items()
        )
    )
