"""The fabric as a tree of domains, with the capacity of every domain's uplink."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.levels import Levels
from llmtrain_core.topology.links import Links

Path = tuple[str, ...]
"""Domains from far to near; a prefix is a domain, the whole path is a node."""

MAX_USED = 0.9
"""Maximum share of an uplink that counts as used by other jobs, so that its rate is never 0."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Domains of all levels but the node, and their uplinks."""

    levels: Levels
    links: Links
    uplinks: Mapping[Path, float]
    """Bytes per second and direction of a domain's uplinks, less the use of other jobs."""
    capacities: Mapping[Path, float]
    """The same without other jobs."""
    sizes: Mapping[Path, int]
    """Nodes of the fabric in a domain, free or not."""

    @property
    def node_rate(self) -> float:
        """Bytes per second and direction that a node can send to others."""
        return _node_rate(self.links, self.levels)

    @property
    def nvlink_depth(self) -> int | None:
        """Length of the path prefix that names an NVLink domain; None where it is the node."""
        depths = [depth + 1 for depth, lv in enumerate(self.levels[:-1]) if lv.nvlink]
        return depths[0] if depths else None


def _node_rate(links: Links, levels: Levels) -> float:
    return links.nic_rate_per_node / (levels[-1].oversubscription if levels else 1.0)


def tree_of(snapshot: Snapshot, paths: Iterable[Path] | None = None) -> Tree:
    """Return the tree of all nodes of a snapshot; `paths` saves reading them again.

    A domain of n nodes at level l: n x rate of a node's NICs / product of the oversubscription of l
    and of all nearer levels.
    """
    levels = snapshot.levels
    sizes: dict[Path, int] = {}
    leaves: dict[Path, int] = {}
    for path in paths if paths is not None else map(snapshot.path, snapshot.nodes):
        leaf = path[:-1]
        leaves[leaf] = leaves.get(leaf, 0) + 1
    for leaf, count in leaves.items():
        for depth in range(1, len(leaf) + 1):
            prefix = leaf[:depth]
            sizes[prefix] = sizes.get(prefix, 0) + count
    thinner = [prod(lv.oversubscription for lv in levels[d:-1]) for d in range(len(levels))]
    rate = _node_rate(snapshot.links, levels)
    capacities = {path: size * rate / thinner[len(path) - 1] for path, size in sizes.items()}
    used = snapshot.uplinks
    free = (
        {
            path: capacity * (1 - min(MAX_USED, max(0.0, used.get(path, 0.0))))
            for path, capacity in capacities.items()
        }
        if used
        else capacities
    )
    return Tree(levels, snapshot.links, free, capacities, sizes)


def folded(tree: Tree) -> Tree:
    """Remove the nearest levels whose domains are all single nodes, such as the hosts of GKE.

    The NICs of a node and the uplinks of its domain become one link with the lower rate. Nodes that
    differ only in their own domain become interchangeable, which makes the search much smaller. A
    level whose uplinks other jobs use is kept.
    """
    levels, leaf = tree.levels, len(tree.levels) - 1
    ends = [path for path in tree.sizes if len(path) == leaf]
    if not ends or any(
        tree.sizes[path] > 1 or tree.uplinks[path] < tree.capacities[path] for path in ends
    ):
        return tree
    narrower = levels[-1].oversubscription * max(1.0, levels[-2].oversubscription)
    node = replace(levels[-1], oversubscription=narrower)
    sizes = {path: size for path, size in tree.sizes.items() if len(path) < leaf}
    return folded(replace(tree, levels=(*levels[:-2], node), sizes=sizes))


def depth_of(levels: Levels, name: str | None) -> int:
    """Return the length of the path of a domain of a level; 0, the whole fabric, for None."""
    return next((depth + 1 for depth, level in enumerate(levels) if level.name == name), 0)


def natural(path: Path) -> tuple[tuple[tuple[tuple[int, int, str], ...], ...], Path]:
    """Sort key under which node-2 comes before node-10; the path parts node-1 from node-01."""
    return tuple(map(_natural, path)), path


@lru_cache(maxsize=65536)
def _natural(part: str) -> tuple[tuple[int, int, str], ...]:
    return tuple(
        (0, int(piece), "") if piece.isdecimal() else (1, 0, piece)
        for piece in re.split(r"(\d+)", part)
        if piece
    )
