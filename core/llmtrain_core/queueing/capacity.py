"""Free room, counted: whether a gang fits is answered in constant time while jobs come and go.

A placement costs milliseconds, and a look into the future asks thousands of times. So the nodes
that could hold a block are counted once per kind of request and domain, and kept up to date. The
count is a necessary condition; `place` has the last word on whatever really starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

from llmtrain_core.placement import Request, eligible
from llmtrain_core.queueing.types import Slot
from llmtrain_core.topology.inventory import Snapshot

Domain = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Requests that differ only in their number of nodes: where a block of theirs may ever sit."""

    key: Hashable
    wanted: tuple[tuple[str, int], ...]
    seats: Mapping[str, tuple[int, ...]]
    """By node that could hold a block: what it hands out of each wanted resource."""
    domains: Mapping[str, Domain]
    """By node: the domain of the required level; the same for all where none is required."""
    largest: int
    """Nodes of the largest domain: no larger gang fits, whoever leaves."""


def shape_key(request: Request, fabric: Snapshot) -> Hashable:
    """Return what makes two requests the same shape."""
    return (
        id(fabric),
        request.gpu_resource,
        request.gpus_per_node,
        *sorted(request.extra.items()),
        "|",
        *sorted(request.node_selector.items()),
        "|",
        *map(repr, request.tolerations),
        request.excluded,
        request.too_small,
        request.require,
    )


def shape_of(request: Request, fabric: Snapshot) -> Shape:
    """Look at every node once."""
    wanted = tuple({request.gpu_resource: request.gpus_per_node, **request.extra}.items())
    names = [level.name for level in fabric.levels]
    depth = names.index(request.require) + 1 if request.require in names else 0
    could = eligible(request, fabric)
    nodes = [node for node in fabric.nodes if node.name in could]
    domains = {node.name: fabric.path(node)[:depth] if depth else () for node in nodes}
    return Shape(
        key=shape_key(request, fabric),
        wanted=wanted,
        seats={
            node.name: tuple(node.allocatable.get(resource, 0) for resource, _ in wanted)
            for node in nodes
        },
        domains=domains,
        largest=max(Counter(domains.values()).values(), default=0),
    )


@dataclass(slots=True)
class _Count:
    shape: Shape
    fitting: set[str] = field(default_factory=set)
    by_domain: dict[Domain, int] = field(default_factory=dict)


class Room:
    """What is in use, and for each shape seen so far which nodes have room for a block.

    `floor` is room that is promised: of use and floor, the larger counts.
    """

    def __init__(self, used: Mapping[Slot, int], floor: Mapping[Slot, int] | None = None):
        self._used = dict(used)
        self._floor = dict(floor or {})
        self._blocked: set[str] = set()
        self._counts: dict[Hashable, _Count] = {}

    def copy(self) -> Self:
        """Return one to try things on."""
        other = type(self)(self._used, self._floor)
        other._blocked = set(self._blocked)
        for key, count in self._counts.items():
            other._counts[key] = _Count(count.shape, set(count.fitting), dict(count.by_domain))
        return other

    @property
    def used(self) -> dict[Slot, int]:
        """What counts as in use, promises included."""
        merged = dict(self._used)
        for slot, amount in self._floor.items():
            merged[slot] = max(merged.get(slot, 0), amount)
        return merged

    @property
    def blocked(self) -> frozenset[str]:
        """Nodes that nobody gets."""
        return frozenset(self._blocked)

    def in_use(self, slot: Slot) -> int:
        """What counts as in use of one resource on one node, promises included."""
        return max(0, self._used.get(slot, 0), self._floor.get(slot, 0))

    def take(self, nodes: Iterable[str], takes: Mapping[str, int]) -> None:
        """Somebody sits down."""
        self._change(nodes, takes, 1)

    def give(self, nodes: Iterable[str], takes: Mapping[str, int]) -> None:
        """Somebody leaves."""
        self._change(nodes, takes, -1)

    def promise(self, floor: Mapping[Slot, int]) -> None:
        """Set room aside; what was set aside before stays."""
        for slot, amount in floor.items():
            self._floor[slot] = max(self._floor.get(slot, 0), amount)
        self._refresh({node for node, _ in floor})

    def block(self, nodes: Iterable[str]) -> None:
        """Let nobody sit down on these nodes any more."""
        names = set(nodes)
        self._blocked |= names
        self._refresh(names)

    def fitting(self, shape: Shape, nodes: int) -> list[Domain]:
        """Return the domains with room for a gang of so many nodes."""
        count = self._count(shape)
        return [domain for domain, free in count.by_domain.items() if free >= nodes]

    def fits(self, shape: Shape, nodes: int) -> bool:
        """Whether a gang of so many nodes has room in one domain."""
        count = self._count(shape)
        return any(free >= nodes for free in count.by_domain.values())

    def free_in(self, shape: Shape, domain: Domain) -> int:
        """Nodes of a domain with room for a block."""
        return self._count(shape).by_domain.get(domain, 0)

    def has_room(self, shape: Shape, node: str) -> bool:
        """Whether a node has room for a block."""
        return node in self._count(shape).fitting

    def pick(self, shape: Shape, nodes: int) -> tuple[str, ...]:
        """Return nodes as a placement might choose them: the tightest domain, first come."""
        count = self._count(shape)
        domain = min(self.fitting(shape, nodes), key=lambda d: (count.by_domain[d], d))
        fitting = (
            name for name in shape.seats if name in count.fitting and shape.domains[name] == domain
        )
        return tuple(islice(fitting, nodes))

    def _count(self, shape: Shape) -> _Count:
        found = self._counts.get(shape.key)
        if found is None:
            found = self._counts[shape.key] = _Count(shape)
            self._refresh(shape.seats, only=found)
        return found

    def _change(self, nodes: Iterable[str], takes: Mapping[str, int], sign: int) -> None:
        names = set(nodes)
        for node in names:
            for resource, amount in takes.items():
                slot = (node, resource)
                self._used[slot] = self._used.get(slot, 0) + sign * amount
        self._refresh(names)

    def _refresh(self, nodes: Collection[str], only: _Count | None = None) -> None:
        for count in (only,) if only is not None else self._counts.values():
            seats, fitting, wanted = count.shape.seats, count.fitting, count.shape.wanted
            for node in nodes:
                seat = seats.get(node)
                if seat is None:
                    continue
                fits = node not in self._blocked and self._has(node, wanted, seat)
                if fits == (node in fitting):
                    continue
                domain = count.shape.domains[node]
                (fitting.add if fits else fitting.discard)(node)
                count.by_domain[domain] = count.by_domain.get(domain, 0) + (1 if fits else -1)

    def _has(self, node: str, wanted: tuple[tuple[str, int], ...], seat: tuple[int, ...]) -> bool:
        for (resource, amount), total in zip(wanted, seat, strict=True):
            slot, most = (node, resource), total - amount
            if most < 0 or self._used.get(slot, 0) > most or self._floor.get(slot, 0) > most:
                return False
        return True
