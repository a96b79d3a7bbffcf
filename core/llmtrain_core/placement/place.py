"""Place a request on a snapshot of the cluster, or explain why it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmtrain_core.layout import Layout
from llmtrain_core.placement.candidate import PlacementCandidate
from llmtrain_core.placement.capacity import (
    CapacityTree,
    build_capacity_tree,
    domains_in_use,
    free_nodes_of,
    has_capacity,
    with_fewer_spares,
)
from llmtrain_core.placement.cost import CostModel, build_link_index
from llmtrain_core.placement.explain import alternative_to, crossings_of, reasons_of, sentence
from llmtrain_core.placement.filter import filter_nodes
from llmtrain_core.placement.infeasible import explain_infeasible, unknown_level
from llmtrain_core.placement.search import search
from llmtrain_core.placement.spares import spares_of
from llmtrain_core.placement.tree import Path, Tree, depth_of, folded, natural, tree_of
from llmtrain_core.placement.types import PlacedNode, Placement, Request, Unplaceable
from llmtrain_core.topology.inventory import Snapshot


def place(request: Request, snapshot: Snapshot) -> Placement | Unplaceable:
    """Choose a node for every block of ranks, or explain why the job does not fit.

    Deterministic: equal requests and snapshots give equal results for any order of nodes.
    """
    scope = _scope(request, snapshot)
    return scope if isinstance(scope, Unplaceable) else _placed(snapshot, scope)


def why_unplaceable(request: Request, snapshot: Snapshot) -> Unplaceable | None:
    """Explain why the job does not fit; None if it fits. Runs `place` without the search."""
    scope = _scope(request, snapshot)
    return scope if isinstance(scope, Unplaceable) else None


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a request fits."""

    request: Request
    """With the spares that there is room for."""
    tree: Tree
    capacity: CapacityTree
    max_depth: int
    """Length of the path of the widest domain that the job may use."""


def _scope(request: Request, snapshot: Snapshot) -> _Scope | Unplaceable:
    unknown = unknown_level(request, snapshot)
    if unknown is not None:
        return unknown
    filtered = filter_nodes(request, snapshot)
    paths = {node.name: snapshot.path(node) for node in snapshot.nodes}
    tree = tree_of(snapshot, paths.values())
    free_nodes = free_nodes_of(request, snapshot, filtered.usable, paths)
    in_use = domains_in_use(request, snapshot, paths)
    capacity = build_capacity_tree(free_nodes, tree, request, in_use)
    farthest = depth_of(snapshot.levels, request.require)
    wanted = [farthest]
    if request.prefer is not None:
        wanted.insert(0, max(farthest, depth_of(snapshot.levels, request.prefer)))
    for max_depth in wanted:
        if has_capacity(capacity, request, max_depth):
            return _Scope(request, tree, capacity, max_depth)
    if request.spares_optional and request.spares:
        for max_depth in wanted:
            reduced = with_fewer_spares(capacity, request, max_depth)
            if reduced is not None:
                return _Scope(reduced, tree, capacity, max_depth)
        request = replace(request, spares=0)
    return explain_infeasible(request, snapshot, tree, filtered, capacity)


def describe(
    layout: Layout, gpus_per_node: int, snapshot: Snapshot, paths: Sequence[Path]
) -> Placement:
    """Return the placement on node paths, given in order of rank block, with its statistics."""
    names = [level.name for level in snapshot.levels]
    domains = {name: len({path[: depth + 1] for path in paths}) for depth, name in enumerate(names)}
    crossings = crossings_of(layout, gpus_per_node, names, paths)
    nodes = tuple(
        PlacedNode(
            path[-1],
            tuple(range(index * gpus_per_node, (index + 1) * gpus_per_node)),
            dict(zip(names, path, strict=True)),
        )
        for index, path in enumerate(paths)
    )
    return Placement(nodes, domains, crossings, sentence(layout, domains, crossings))


def _placed(snapshot: Snapshot, scope: _Scope) -> Placement:
    request, tree, max_depth = scope.request, folded(scope.tree), scope.max_depth
    capacity = scope.capacity
    if tree is not scope.tree:
        capacity = build_capacity_tree(
            [free_node for free_nodes in capacity.free_nodes for free_node in free_nodes],
            tree,
            request,
            capacity.in_use,
        )
    cost_model = CostModel(request, scope.tree)
    link_index = build_link_index(tree, [domain.path for domain in capacity.leaves])
    found = search(request, cost_model.traffic, link_index, capacity, max_depth)
    paths = paths_of(capacity, found[0])
    answer = describe(request.layout, request.gpus_per_node, snapshot, paths)
    names = [level.name for level in snapshot.levels]
    spares = tuple(
        PlacedNode(path[-1], (), dict(zip(names, path, strict=True)))
        for path in spares_of(capacity, paths, request.spares, max_depth)
    )
    cost = cost_model.cost(paths)
    return replace(
        answer,
        cost=cost,
        spares=spares,
        reasons=reasons_of(
            request, cost_model, scope.capacity, found[0].method, paths, cost, max_depth
        ),
        alternative=alternative_to(
            found,
            names,
            lambda other: paths_of(capacity, other),
            request.tolerated_seconds,
        ),
    )


def paths_of(capacity: CapacityTree, candidate: PlacementCandidate) -> list[Path]:
    """Choose the nodes inside leaf domains; blocks get the nodes of a leaf in natural order."""
    blocks: dict[int, list[int]] = {}
    for block, leaf in enumerate(candidate.leaves):
        blocks.setdefault(leaf, []).append(block)
    paths: list[Path] = [()] * len(candidate.leaves)
    for leaf, members in blocks.items():
        chosen = [free_node.path for free_node in capacity.free_nodes[leaf][: len(members)]]
        for block, path in zip(members, sorted(chosen, key=natural), strict=True):
            paths[block] = path
    return paths
