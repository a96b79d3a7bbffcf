"""The free nodes as a tree: how many blocks every domain can take, and which nodes come first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llmtrain_core.placement.tree import Path, Tree, depth_of, natural
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot

NO_CELL = -1


@dataclass(frozen=True, slots=True)
class Spot:
    """A free node: its path, and the GPUs that would be left over on it."""

    path: Path
    left: int


@dataclass(slots=True)
class Room:
    """A domain with free nodes. The root, above all levels, has an empty path."""

    path: Path
    free: int
    """Free nodes in it."""
    fits: int
    """Blocks that it can take: whole tensor groups only, down to the level that keeps them."""
    uplink: float = 0.0
    """Bytes per second and direction of its uplinks; 0 for the root."""
    children: list[Room] = field(default_factory=list)
    """In natural order; empty for a cell, a nearest domain."""
    cell: int = NO_CELL

    def walk(self) -> Iterator[Room]:
        """Yield this room and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


Division = list[tuple[Room, list[tuple[int, int]]]]
"""Sub-domains, each with the places in an order of blocks that it takes: start and end."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The tree of rooms, and the free nodes of every cell."""

    root: Room
    cells: tuple[Room, ...]
    spots: tuple[tuple[Spot, ...], ...]
    """By cell: nodes with the fewest GPUs left over first, else in natural order."""
    group: int
    """Blocks of one tensor group that must stay together; 1 where a node holds whole groups."""
    depth: int
    """Length of the path of the domains in which they stay."""
    largest: int
    """Blocks that the largest cell can take."""
    divisions: dict[object, Division] = field(default_factory=dict, compare=False, repr=False)
    """How rooms were divided before."""
    _within: dict[tuple[Path, int], int] = field(default_factory=dict, compare=False, repr=False)

    def within_cells(self, room: Room, unit: int) -> int:
        """Return the blocks that a domain can take as runs of `unit`, each within one cell."""
        key = (room.path, unit)
        known = self._within.get(key)
        if known is None:
            known = room.fits - room.fits % unit
            if room.cell == NO_CELL:
                known = sum(self.within_cells(child, unit) for child in room.children)
            self._within[key] = known
        return known

    def at(self, depth: int) -> list[Room]:
        """Return the rooms whose path has so many domains, in natural order."""
        rooms = [self.root]
        for _ in range(depth):
            rooms = [child for room in rooms for child in room.children]
        return rooms


def spots_of(request: Request, snapshot: Snapshot, nodes: Iterable[Node]) -> list[Spot]:
    """Return the free nodes of a request."""
    resource, wanted = request.gpu_resource, request.gpus_per_node
    return [Spot(snapshot.path(n), snapshot.free(n, resource) - wanted) for n in nodes]


def tensor_group(request: Request, tree: Tree) -> tuple[int, int]:
    """Return the nodes of a tensor group that must stay together, and the depth of their domain."""
    if request.tensor_within is None:
        return 1, 0
    group = max(1, request.layout.tensor // request.gpus_per_node)
    return group, 0 if group == 1 else depth_of(tree.levels, request.tensor_within)


def rooms_of(spots: Sequence[Spot], tree: Tree, request: Request) -> Rooms:
    """Build the tree of free nodes; paths may be longer than a folded tree is deep."""
    levels, uplinks = len(tree.levels), tree.uplinks
    group, depth = tensor_group(request, tree)
    by_cell: dict[Path, list[Spot]] = {}
    for spot in spots:
        by_cell.setdefault(spot.path[: levels - 1], []).append(spot)
    cells: list[Room] = []
    held: list[tuple[Spot, ...]] = []
    for path in sorted(by_cell, key=natural):
        members = sorted(by_cell[path], key=lambda spot: (spot.left, natural(spot.path)))
        fits = len(members)
        if group > 1 and depth == levels:  # in one node, which holds a single block
            fits = 0
        elif group > 1 and depth == levels - 1:
            fits -= fits % group
        cells.append(Room(path, len(members), fits, uplinks.get(path, 0.0), cell=len(cells)))
        held.append(tuple(members))
    layer = list(cells)
    for length in range(levels - 2, -1, -1):
        above: dict[Path, Room] = {}
        for room in layer:
            path = room.path[:length]
            parent = above.setdefault(path, Room(path, 0, 0, uplinks.get(path, 0.0)))
            parent.children.append(room)
            parent.free += room.free
            parent.fits += room.fits
        if group > 1 and length == depth:
            for parent in above.values():
                parent.fits -= parent.fits % group
        layer = list(above.values())
    root = layer[0] if layer else Room((), 0, 0)
    largest = max((cell.fits for cell in cells), default=0)
    return Rooms(root, tuple(cells), tuple(held), group, depth, largest)


def enough(rooms: Rooms, request: Request, bound: int) -> bool:
    """Whether some domain of the level that bounds the job holds all of it, spares included.

    A path as long as that of a node means a single node.
    """
    if not rooms.cells:
        return False
    if bound > len(rooms.cells[0].path):
        return request.nodes == 1 and not request.spares
    return any(
        room.fits >= request.nodes and room.free >= request.nodes + request.spares
        for room in rooms.at(bound)
    )
