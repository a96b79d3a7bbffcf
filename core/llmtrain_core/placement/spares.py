"""Spare nodes: free nodes near the gang, so that a replacement leaves ring order and crossings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmtrain_core.placement.capacity import Rooms
from llmtrain_core.placement.tree import Path, natural


def spares_of(rooms: Rooms, paths: Sequence[Path], count: int, bound: int) -> list[Path]:
    """Return free nodes that are as near to the gang as possible.

    A node under a domain that more of the gang uses comes first, level by level from near to far;
    `bound` is the length of the path of the domain that the spares must not leave.
    """
    if not count:
        return []
    taken = set(paths)
    used = Counter(path[:depth] for path in paths for depth in range(len(path)))
    inside = paths[0][: min(bound, len(paths[0]) - 1)]
    free = [
        spot.path
        for spots in rooms.spots
        for spot in spots
        if spot.path not in taken and spot.path[: len(inside)] == inside
    ]
    free.sort(key=lambda p: ([-used[p[:d]] for d in range(len(p) - 1, -1, -1)], natural(p)))
    return free[:count]
