"""The entrance: from a request and a snapshot to a placement, or to the reason there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmtrain_core.layout import Layout
from llmtrain_core.placement.capacity import Rooms, enough, rooms_of, spots_of
from llmtrain_core.placement.cost import Pricing, ground_of
from llmtrain_core.placement.explain import alternative_to, crossings_of, reasons_of, sentence
from llmtrain_core.placement.filter import screen
from llmtrain_core.placement.infeasible import refuse, unknown_level
from llmtrain_core.placement.search import Candidate, search
from llmtrain_core.placement.spares import spares_of
from llmtrain_core.placement.tree import Path, Tree, depth_of, folded, natural, tree_of
from llmtrain_core.placement.types import PlacedNode, Placement, Request, Unplaceable
from llmtrain_core.topology.inventory import Snapshot


def place(request: Request, snapshot: Snapshot) -> Placement | Unplaceable:
    """Choose a node for every block of ranks, or say why there is no room.

    Deterministic: the same request and snapshot give the same answer, whatever the order of nodes.
    """
    scope = _scope(request, snapshot)
    return scope if isinstance(scope, Unplaceable) else _placed(request, snapshot, scope)


def refusal(request: Request, snapshot: Snapshot) -> Unplaceable | None:
    """Say why there is no room, or None where there is: `place` without the search."""
    scope = _scope(request, snapshot)
    return scope if isinstance(scope, Unplaceable) else None


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a request has room."""

    tree: Tree
    rooms: Rooms
    bound: int
    """Length of the path of the widest domain that the job may use."""


def _scope(request: Request, snapshot: Snapshot) -> _Scope | Unplaceable:
    unknown = unknown_level(request, snapshot)
    if unknown is not None:
        return unknown
    screening = screen(request, snapshot)
    tree = tree_of(snapshot)
    rooms = rooms_of(spots_of(request, snapshot, screening.usable), tree, request)
    farthest = depth_of(snapshot.levels, request.require)
    wanted = [farthest]
    if request.prefer is not None:
        wanted.insert(0, max(farthest, depth_of(snapshot.levels, request.prefer)))
    for bound in wanted:
        if enough(rooms, request, bound):
            return _Scope(tree, rooms, bound)
    return refuse(request, snapshot, tree, screening, rooms)


def describe(
    layout: Layout, gpus_per_node: int, snapshot: Snapshot, paths: Sequence[Path]
) -> Placement:
    """Turn node paths in order of rank block into a placement with its figures."""
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


def _placed(request: Request, snapshot: Snapshot, scope: _Scope) -> Placement:
    tree, bound = folded(scope.tree), scope.bound
    rooms = scope.rooms
    if tree is not scope.tree:
        rooms = rooms_of([spot for spots in rooms.spots for spot in spots], tree, request)
    pricing = Pricing(request, scope.tree)
    ground = ground_of(tree, [room.path for room in rooms.cells])
    found = search(request, pricing.traffic, ground, rooms, bound)
    paths = paths_of(rooms, found[0])
    answer = describe(request.layout, request.gpus_per_node, snapshot, paths)
    names = [level.name for level in snapshot.levels]
    spares = tuple(
        PlacedNode(path[-1], (), dict(zip(names, path, strict=True)))
        for path in spares_of(rooms, paths, request.spares, bound)
    )
    cost = pricing.cost(paths)
    return replace(
        answer,
        cost=cost,
        spares=spares,
        reasons=reasons_of(request, pricing, scope.rooms, found[0].method, paths, cost, bound),
        alternative=alternative_to(found, names, lambda other: paths_of(rooms, other)),
    )


def paths_of(rooms: Rooms, candidate: Candidate) -> list[Path]:
    """Choose the nodes inside cells; the blocks of a cell take its nodes in natural order."""
    blocks: dict[int, list[int]] = {}
    for block, cell in enumerate(candidate.cells):
        blocks.setdefault(cell, []).append(block)
    paths: list[Path] = [()] * len(candidate.cells)
    for cell, members in blocks.items():
        chosen = [spot.path for spot in rooms.spots[cell][: len(members)]]
        for block, path in zip(members, sorted(chosen, key=natural), strict=True):
            paths[block] = path
    return paths
