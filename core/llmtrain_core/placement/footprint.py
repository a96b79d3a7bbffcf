"""What a placement takes from the fabric: domains, whole domains, and GPUs that it leaves unused.

Among placements of about equal cost the one with the lowest footprint is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.cost import LinkIndex

Counts = Mapping[int, int]
"""Number of blocks by leaf domain, without zeros."""


class Footprint(NamedTuple):
    """The criteria that come before small differences in cost, in order; lower is better."""

    domains: tuple[tuple[int, int], ...]
    """Domains used and spares that do not fit into them, by level from far to near."""
    broken: tuple[int, ...]
    """Domains used of which every node was free, by level from far to near."""
    gpus_over: int
    """Unused GPUs on the nodes of the job."""


class FootprintModel:
    """Computes the footprint of assignments of one request."""

    def __init__(self, link_index: LinkIndex, capacity: CapacityTree, spares: int):
        self._levels = len(capacity.leaves[0].path)
        self._spares = spares
        self._domain_paths = link_index.domain_paths
        by_path = {domain.path: domain for domain in capacity.root.walk()}
        domains = [by_path[path] for path in link_index.domains]
        self._domains = [(len(d.path) - 1, d.free, d.whole) for d in domains]
        """Depth, free nodes and wholeness of every domain."""
        self.gpus_left = [
            tuple(node.left for node in free_nodes) for free_nodes in capacity.free_nodes
        ]
        """By leaf domain: GPUs that a block would leave unused on its nodes, fewest first."""
        self.any_left = any(map(any, self.gpus_left))

    def of(self, counts: Counts) -> tuple[Footprint, tuple[int, ...]]:
        """Return the footprint of a number of blocks in each leaf domain, and the nodes left.

        These are the free nodes left in the domains of the job, by level from near to far.
        """
        held: dict[int, int] = {}
        for leaf, count in counts.items():
            for domain in self._domain_paths[leaf]:
                held[domain] = held.get(domain, 0) + count
        used, broken, left = ([0] * self._levels for _ in range(3))
        for domain, count in held.items():
            depth, free, whole = self._domains[domain]
            used[depth] += 1
            broken[depth] += whole
            left[depth] += free - count
        over = 0
        if self.any_left:
            over = sum(sum(self.gpus_left[leaf][:count]) for leaf, count in counts.items())
        outside = (max(0, self._spares - free) for free in left)
        footprint = Footprint(
            tuple(zip(used, outside, strict=True)),
            tuple(broken),
            over,
        )
        return footprint, tuple(max(0, free - self._spares) for free in reversed(left))


def cheapest_counts(
    model: FootprintModel, limits: Counts, count: int, unit: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Distribute `count` blocks over all of some leaf domains with the fewest unused GPUs.

    Return the blocks of each, and the most that each may get without more unused GPUs. `unit`
    blocks stay together.
    """
    counts = dict.fromkeys(limits, unit)
    if not model.any_left:
        rest_of_blocks = count - unit * len(limits)
        for leaf, limit in limits.items():
            more = min(rest_of_blocks, limit - unit)
            counts[leaf] += more
            rest_of_blocks -= more
        return counts, dict(limits)
    rest = sorted(
        (left, leaf)
        for leaf, limit in limits.items()
        for left in model.gpus_left[leaf][unit:limit:unit]
    )[: max(0, count // unit - len(limits))]
    for _, leaf in rest:
        counts[leaf] += unit
    most = rest[-1][0] if rest else -1
    if unit > 1:
        return counts, dict(limits)
    return counts, {
        leaf: max(1, sum(left <= most for left in model.gpus_left[leaf][:limit]))
        for leaf, limit in limits.items()
    }
