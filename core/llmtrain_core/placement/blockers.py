"""The smallest set of unavailable nodes that a waiting job needs.

Only causes that can change are considered: GPUs in use, nodes that are reserved, cordoned or not
ready, and constraints of the job itself. A node that is too small is never included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmtrain_core.placement.capacity import (
    FreeNode,
    build_capacity_tree,
    has_capacity,
    tensor_group,
)
from llmtrain_core.placement.filter import AVOIDED, IN_USE, WITHHELD, FilterResult
from llmtrain_core.placement.tree import Path, Tree, depth_of, natural
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot

_CAUSES = (
    WITHHELD,
    "cordoned",
    "not ready",
    AVOIDED,
    "excluded by the job",
    "taint not tolerated",
    "node selector does not match",
)
"""Causes that can change besides GPUs in use, the most likely to resolve itself first."""


BlockedNode = tuple[Path, str, int]
"""Path of a node, its cause, and the rank of the cause: lower resolves sooner."""


@dataclass(frozen=True, slots=True)
class Blockers:
    """Nodes, each with its cause, and the domain into which the job would then fit."""

    nodes: tuple[tuple[str, str], ...]
    where: str
    """Level and path of the domain; empty for the whole fabric."""
    busy: bool
    """Whether pods of other jobs are the only cause."""


def blockers_of(
    request: Request, snapshot: Snapshot, tree: Tree, filtered: FilterResult
) -> Blockers | None:
    """Return the fewest nodes to wait for, soonest available first; None if waiting is no use."""
    max_depth = depth_of(tree.levels, request.require)
    waiting = [(node, causes) for node, causes in filtered.refused if _wait_rank(causes) >= 0]
    held = _by_domain(
        snapshot, [(node, " and ".join(c), _wait_rank(c)) for node, c in waiting], max_depth
    )
    free = _by_domain(snapshot, [(node, "", 0) for node in filtered.usable], max_depth)
    found: list[tuple[tuple[int, int], tuple[object, ...], Blockers]] = []
    for domain in sorted(free.keys() | held.keys(), key=natural):
        have = [FreeNode(path, 0) for path, _, _ in free.get(domain, [])]
        wait = sorted(held.get(domain, []), key=lambda h: (h[2], natural(h[0])))
        chosen = _fewest(request, tree, max_depth, have, wait)
        if chosen:
            worst = max(wait_rank for _, _, wait_rank in chosen)
            where = f"{request.require} {'/'.join(domain)}" if domain else ""
            nodes = tuple((path[-1], cause) for path, cause, _ in chosen)
            named = Blockers(nodes, where, busy=worst == 0)
            found.append(((worst, len(chosen)), natural(domain), named))
    return min(found, key=lambda item: item[:2])[2] if found else None


def _wait_rank(causes: Sequence[str]) -> int:
    """Return the rank of the slowest cause; -1 if a cause cannot change."""
    ranks = [_rank(AVOIDED if cause.startswith(AVOIDED) else cause) for cause in causes]
    return max(ranks) if min(ranks) >= 0 else -1


def _rank(cause: str) -> int:
    if cause.endswith(IN_USE):
        return 0
    return _CAUSES.index(cause) + 1 if cause in _CAUSES else -1


def _by_domain(
    snapshot: Snapshot, nodes: Iterable[tuple[Node, str, int]], max_depth: int
) -> dict[Path, list[BlockedNode]]:
    found: dict[Path, list[BlockedNode]] = {}
    for node, cause, wait_rank in nodes:
        path = snapshot.path(node)
        found.setdefault(path[:max_depth], []).append((path, cause, wait_rank))
    return found


def _fewest(
    request: Request,
    tree: Tree,
    max_depth: int,
    have: Sequence[FreeNode],
    wait: Sequence[BlockedNode],
) -> list[BlockedNode]:
    """Return the first waiting nodes that suffice, without unnecessary ones."""

    def fits(chosen: Sequence[BlockedNode]) -> bool:
        free_nodes = [*have, *(FreeNode(path, 0) for path, _, _ in chosen)]
        return has_capacity(build_capacity_tree(free_nodes, tree, request), request, max_depth)

    short = max(0, request.nodes + request.spares - len(have))
    if short > len(wait):
        return []
    if tensor_group(request, tree)[0] == 1:
        return list(wait[:short])
    low, high = short, len(wait)
    if not fits(wait):
        return []
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(wait[:middle]) else (middle + 1, high)
    chosen = list(wait[:low])
    for node in (
        chosen[::-1] if low > short else ()
    ):  # some do not help: their group stays incomplete
        without = [other for other in chosen if other != node]
        chosen = without if fits(without) else chosen
    return chosen
