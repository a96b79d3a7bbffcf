"""Choose spare nodes near the gang, so that a replacement keeps ring order and crossings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.tree import Path, natural


def spares_of(
    capacity: CapacityTree, paths: Sequence[Path], count: int, max_depth: int
) -> list[Path]:
    """Return the free nodes that are nearest to the gang.

    A node under a domain that more of the gang uses comes first, level by level from near to far;
    `max_depth` is the path length of the domain that must contain the spares.
    """
    if not count:
        return []
    taken = set(paths)
    used = Counter(path[:depth] for path in paths for depth in range(len(path)))
    inside = paths[0][: min(max_depth, len(paths[0]) - 1)]
    free = [
        free_node.path
        for free_nodes in capacity.free_nodes
        for free_node in free_nodes
        if free_node.path not in taken and free_node.path[: len(inside)] == inside
    ]
    free.sort(key=lambda p: ([-used[p[:d]] for d in range(len(p) - 1, -1, -1)], natural(p)))
    return free[:count]
