"""The free nodes as a tree of domains: how many blocks each domain can hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llmtrain_core.placement.tree import Path, Tree, depth_of, natural
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot

NOT_A_LEAF = -1


@dataclass(frozen=True, slots=True)
class FreeNode:
    """A free node: its path, and the GPUs that a block would leave unused on it."""

    path: Path
    left: int


@dataclass(slots=True)
class DomainCapacity:
    """The free nodes of a domain. The root, above all levels, has an empty path."""

    path: Path
    free: int
    """Free nodes in it."""
    fits: int
    """Blocks that it can hold. Down to the level of `tensorWithin`, whole tensor groups only."""
    uplink: float = 0.0
    """Bytes per second and direction of its uplinks; 0 for the root."""
    children: list[DomainCapacity] = field(default_factory=list)
    """In natural order; empty for a leaf domain, which has no domains below it."""
    leaf: int = NOT_A_LEAF

    def walk(self) -> Iterator[DomainCapacity]:
        """Yield this domain and all domains below it."""
        yield self
        for child in self.children:
            yield from child.walk()


Division = list[tuple[DomainCapacity, list[tuple[int, int]]]]
"""Sub-domains, each with the ranges (start, end) of the order of blocks that it gets."""


@dataclass(frozen=True, slots=True)
class CapacityTree:
    """The tree of domains with free nodes, and the free nodes of every leaf domain."""

    root: DomainCapacity
    leaves: tuple[DomainCapacity, ...]
    free_nodes: tuple[tuple[FreeNode, ...], ...]
    """By leaf domain: nodes with the fewest unused GPUs first, then in natural order."""
    group: int
    """Blocks of one tensor group that must share a domain; 1 where a node holds whole groups."""
    depth: int
    """Length of the path of the domain that they must share."""
    largest: int
    """Blocks that the largest leaf domain can hold."""
    divisions: dict[object, Division] = field(default_factory=dict, compare=False, repr=False)
    """Cache of divisions, by domain and request."""
    _within: dict[tuple[Path, int], int] = field(default_factory=dict, compare=False, repr=False)

    def within_leaves(self, domain: DomainCapacity, unit: int) -> int:
        """Return the blocks that a domain can hold as runs of `unit`, each within one leaf."""
        key = (domain.path, unit)
        known = self._within.get(key)
        if known is None:
            known = domain.fits - domain.fits % unit
            if domain.leaf == NOT_A_LEAF:
                known = sum(self.within_leaves(child, unit) for child in domain.children)
            self._within[key] = known
        return known

    def at(self, depth: int) -> list[DomainCapacity]:
        """Return the domains whose path has `depth` parts, in natural order."""
        capacity = [self.root]
        for _ in range(depth):
            capacity = [child for domain in capacity for child in domain.children]
        return capacity


def free_nodes_of(request: Request, snapshot: Snapshot, nodes: Iterable[Node]) -> list[FreeNode]:
    """Return the nodes as free nodes of a request."""
    resource, wanted = request.gpu_resource, request.gpus_per_node
    return [FreeNode(snapshot.path(n), snapshot.free(n, resource) - wanted) for n in nodes]


def tensor_group(request: Request, tree: Tree) -> tuple[int, int]:
    """Return the nodes of a tensor group that must share a domain, and the depth of that domain."""
    if request.tensor_within is None:
        return 1, 0
    group = max(1, request.layout.tensor // request.gpus_per_node)
    return group, 0 if group == 1 else depth_of(tree.levels, request.tensor_within)


def build_capacity_tree(
    free_nodes: Sequence[FreeNode], tree: Tree, request: Request
) -> CapacityTree:
    """Build the tree of free nodes. Paths may be longer than a folded tree is deep."""
    levels, uplinks = len(tree.levels), tree.uplinks
    group, depth = tensor_group(request, tree)
    by_leaf: dict[Path, list[FreeNode]] = {}
    for free_node in free_nodes:
        by_leaf.setdefault(free_node.path[: levels - 1], []).append(free_node)
    leaves: list[DomainCapacity] = []
    held: list[tuple[FreeNode, ...]] = []
    for path in sorted(by_leaf, key=natural):
        members = sorted(
            by_leaf[path], key=lambda free_node: (free_node.left, natural(free_node.path))
        )
        fits = len(members)
        if group > 1 and depth == levels:  # in one node, which holds a single block
            fits = 0
        elif group > 1 and depth == levels - 1:
            fits -= fits % group
        leaves.append(
            DomainCapacity(path, len(members), fits, uplinks.get(path, 0.0), leaf=len(leaves))
        )
        held.append(tuple(members))
    layer = list(leaves)
    for length in range(levels - 2, -1, -1):
        above: dict[Path, DomainCapacity] = {}
        for domain in layer:
            path = domain.path[:length]
            parent = above.setdefault(path, DomainCapacity(path, 0, 0, uplinks.get(path, 0.0)))
            parent.children.append(domain)
            parent.free += domain.free
            parent.fits += domain.fits
        if group > 1 and length == depth:
            for parent in above.values():
                parent.fits -= parent.fits % group
        layer = list(above.values())
    root = layer[0] if layer else DomainCapacity((), 0, 0)
    largest = max((leaf.fits for leaf in leaves), default=0)
    return CapacityTree(root, tuple(leaves), tuple(held), group, depth, largest)


def has_capacity(capacity: CapacityTree, request: Request, max_depth: int) -> bool:
    """Whether some domain of the level that bounds the job holds all of it, spares included.

    A path as long as that of a node means a single node.
    """
    if not capacity.leaves:
        return False
    if max_depth > len(capacity.leaves[0].path):
        return request.nodes == 1 and not request.spares
    return any(
        domain.fits >= request.nodes and domain.free >= request.nodes + request.spares
        for domain in capacity.at(max_depth)
    )
