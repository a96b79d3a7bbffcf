"""The free nodes as a tree of domains: how many blocks each domain can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtrain_core.placement.tree import Path, Tree, depth_of, natural
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot

NOT_A_LEAF = -1


@dataclass(frozen=True, slots=True)
class FreeNode:
    """A free node: its path, and the GPUs that a block would leave unused on it."""

    path: Path
    left: int


@dataclass(slots=True, eq=False)
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
    whole: bool = False
    """Whether no node in it is in use or unavailable, so that a job could get all of it."""

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
    uplinks: Mapping[Path, float] = field(default_factory=dict, compare=False, repr=False)
    """Bytes per second and direction of the uplinks of domains."""
    in_use: Collection[Path] = ()
    """Domains of which some node is not free."""
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

    def restricted(self, most: Mapping[int, int]) -> CapacityTree:
        """Return the tree of some leaf domains, each with its maximum number of blocks.

        Leaf domains keep their numbers.
        """
        chosen = [(self.leaves[index], most[index]) for index in sorted(most)]
        leaves = tuple(
            DomainCapacity(
                leaf.path, min(leaf.free, limit), limit, leaf.uplink, [], leaf.leaf, leaf.whole
            )
            for leaf, limit in chosen
        )
        root = _joined(leaves, self.group, self.depth, self.uplinks, self.in_use)
        return CapacityTree(
            root,
            leaves,
            self.free_nodes,
            self.group,
            self.depth,
            max(most.values()),
            self.uplinks,
            self.in_use,
        )

    def at(self, depth: int) -> list[DomainCapacity]:
        """Return the domains whose path has `depth` parts, in natural order."""
        capacity = [self.root]
        for _ in range(depth):
            capacity = [child for domain in capacity for child in domain.children]
        return capacity


def free_nodes_of(
    request: Request,
    snapshot: Snapshot,
    nodes: Iterable[Node],
    paths: Mapping[str, Path] | None = None,
) -> list[FreeNode]:
    """Return the nodes as free nodes of a request; `paths` by node saves reading them again."""
    resource, wanted = request.gpu_resource, request.gpus_per_node
    return [
        FreeNode(
            snapshot.path(node) if paths is None else paths[node.name],
            snapshot.free(node, resource) - wanted,
        )
        for node in nodes
    ]


def tensor_group(request: Request, tree: Tree) -> tuple[int, int]:
    """Return the nodes of a tensor group that must share a domain, and the depth of that domain."""
    if request.tensor_within is None:
        return 1, 0
    group = max(1, request.layout.tensor // request.gpus_per_node)
    return group, 0 if group == 1 else depth_of(tree.levels, request.tensor_within)


def domains_in_use(
    request: Request, snapshot: Snapshot, paths: Mapping[str, Path]
) -> frozenset[Path]:
    """Return the domains with a node that has such GPUs and is in use or unavailable.

    `paths` are those of all nodes, by name.
    """
    resource, withheld = request.gpu_resource, snapshot.withheld
    busy = {name for (name, used), amount in snapshot.used.items() if used == resource and amount}
    leaves = {
        paths[node.name][:-1]
        for node in snapshot.nodes
        if (node.name in busy or not node.ready or node.cordoned or node.name in withheld)
        and node.allocatable.get(resource)
    }
    return frozenset(leaf[:depth] for leaf in leaves for depth in range(1, len(leaf) + 1))


def build_capacity_tree(
    free_nodes: Sequence[FreeNode], tree: Tree, request: Request, in_use: Collection[Path] = ()
) -> CapacityTree:
    """Build the tree of free nodes. Paths may be longer than a folded tree is deep.

    `in_use` are the domains of which some node is not free.
    """
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
        leaf = DomainCapacity(path, len(members), fits, uplinks.get(path, 0.0), leaf=len(leaves))
        leaf.whole = path not in in_use
        leaves.append(leaf)
        held.append(tuple(members))
    root = _joined(leaves, group, depth, uplinks, in_use)
    largest = max((leaf.fits for leaf in leaves), default=0)
    return CapacityTree(root, tuple(leaves), tuple(held), group, depth, largest, uplinks, in_use)


def _joined(
    leaves: Sequence[DomainCapacity],
    group: int,
    depth: int,
    uplinks: Mapping[Path, float],
    in_use: Collection[Path],
) -> DomainCapacity:
    """Build the domains above leaf domains, and return the root."""
    layer = list(leaves)
    for length in range(len(layer[0].path) - 1 if layer else 0, -1, -1):
        above: dict[Path, DomainCapacity] = {}
        for domain in layer:
            path = domain.path[:length]
            parent = above.get(path)
            if parent is None:
                parent = DomainCapacity(path, 0, 0, uplinks.get(path, 0.0))
                parent.whole = path not in in_use
                above[path] = parent
            parent.children.append(domain)
            parent.free += domain.free
            parent.fits += domain.fits
        if group > 1 and length == depth:
            for parent in above.values():
                parent.fits -= parent.fits % group
        layer = list(above.values())
    return layer[0] if layer else DomainCapacity((), 0, 0)


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


def with_fewer_spares(capacity: CapacityTree, request: Request, max_depth: int) -> Request | None:
    """Return the request with as many spares as there is room for; None if the gang has none."""
    if has_capacity(capacity, replace(request, spares=0), max_depth):
        inside = capacity.at(max_depth) if max_depth <= len(capacity.leaves[0].path) else ()
        left = (domain.free - request.nodes for domain in inside if domain.fits >= request.nodes)
        return replace(request, spares=min(request.spares, max(left, default=0)))
    return None
