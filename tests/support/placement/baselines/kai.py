"""KAI's topology plugin, restated.

Source: kai-scheduler/KAI-Scheduler, docs/topology and the comments of
pkg/scheduler/plugins/topology (job_filtering.go, node_scoring.go). Domains that hold the whole job
are tried from the preferred level up to the required one (or the cluster); siblings are sorted by
asked over free, fullest first, and the first domain in that order is taken. In it, nodes score
floor(10 (i + 1) / n) by their domain's place i of n at the preferred level in the same order, so
the emptiest is filled first; ties go to the fuller node (bin-packing), then by name. Pod index i is
rank block i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.free_nodes import Path, by_domain, depth_of, free_paths


def kai(request: Request, snapshot: Snapshot, level: str) -> list[Path] | None:
    """Return the node of every pod index, or None; `level` is the preferred level."""
    paths = free_paths(request, snapshot)
    nearest = depth_of(snapshot, level)
    farthest = 0 if request.require is None else depth_of(snapshot, request.require)
    free = _free_gpus(request, snapshot)
    for depth in range(max(nearest, farthest), farthest - 1, -1):
        for domain in _sorted_tree(list(free), free, depth):
            members = [path for path in paths if path[:depth] == domain]
            if len(members) >= request.nodes:
                inside = [path for path in free if path[:depth] == domain]
                order = list(_sorted_tree(inside, free, max(nearest, depth), depth))
                return _fill(members, order, free)[: request.nodes]
    return None


def _free_gpus(request: Request, snapshot: Snapshot) -> dict[Path, int]:
    """Return idle GPUs by node path. The plugin sums them over every node of a domain."""
    return {
        snapshot.path(node): snapshot.free(node, request.gpu_resource) for node in snapshot.nodes
    }


def _sorted_tree(
    nodes: Sequence[Path], free: dict[Path, int], depth: int, at: int = 0
) -> Iterator[Path]:
    """Yield the domains of one depth; siblings by free GPUs, least first, at every level above."""
    if at == depth:
        yield nodes[0][:depth]
        return
    children = by_domain(nodes, at + 1)
    for child in sorted(children, key=lambda c: (sum(free[path] for path in children[c]), c)):
        yield from _sorted_tree(children[child], free, depth, at + 1)


def _fill(members: Sequence[Path], order: Sequence[Path], free: dict[Path, int]) -> list[Path]:
    depth = len(order[0])
    score = {domain: 10 * (place + 1) // len(order) for place, domain in enumerate(order)}
    return sorted(members, key=lambda path: (-score[path[:depth]], free[path], path))
