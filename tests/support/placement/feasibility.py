"""Whether a gang fits at all, by trying every way to place it."""

from __future__ import annotations

from collections import Counter

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.free_nodes import Path, depth_of, free_paths


def tensor_depth(request: Request, snapshot: Snapshot) -> int:
    """Return how many domains the nodes of one tensor group must share; 0 for no demand."""
    return 0 if request.tensor_within is None else depth_of(snapshot, request.tensor_within)


def tensor_blocks(request: Request) -> list[list[int]]:
    """Return the blocks of every tensor group that spans more than one."""
    g = request.gpus_per_node
    groups = [sorted({rank // g for rank in one}) for one in request.layout.groups("tensor")]
    return [blocks for blocks in groups if len(blocks) > 1]


def fits(request: Request, snapshot: Snapshot) -> bool:
    """Deal blocks out to nearest domains in every way until one keeps all constraints.

    Spares are nodes of the job: the domain that bounds it must have room for them too.
    """
    paths = free_paths(request, snapshot)
    required = 0 if request.require is None else depth_of(snapshot, request.require)
    apart = tensor_depth(request, snapshot)
    groups = tensor_blocks(request)
    # Constraints at the node level make the node the cell; else alike nodes are one cell.
    depth = len(snapshot.levels) - 1 if len(snapshot.levels) not in (required, apart) else None
    left = Counter(path[:depth] for path in paths)
    room = Counter(path[:required] for path in paths)

    def deal(placed: list[Path]) -> bool:
        for cell in placed:
            domain = cell[:required]
            if domain != placed[0][:required] or room[domain] < request.nodes + request.spares:
                return False
        for blocks in groups:
            domains = {placed[b][:apart] for b in blocks if b < len(placed)}
            if len(domains) > 1:
                return False
        if len(placed) == request.nodes:
            return True
        for cell in sorted(left):
            if left[cell]:
                left[cell] -= 1
                done = deal([*placed, cell])
                left[cell] += 1
                if done:
                    return True
        return False

    return deal([])
