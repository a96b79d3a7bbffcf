"""Free capacity, counted per domain: answers in constant time whether a gang fits.

A placement takes milliseconds, and start estimates need thousands of answers. So the nodes that fit
a rank block are counted once per class of requests and domain, and the counts are kept up to date.
A sufficient count is a necessary condition only. `place` decides whether a gang really starts.
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
class RequestClass:
    """Requests that differ only in their number of nodes, and the nodes that can serve them."""

    key: Hashable
    resources: tuple[tuple[str, int], ...]
    """Amount of each resource that a rank block needs."""
    allocatable: Mapping[str, tuple[int, ...]]
    """By node that could hold a block: its allocatable amount of each of `resources`."""
    domains: Mapping[str, Domain]
    """By node: the domain of the required level; the same for all where none is required."""
    largest_domain: int
    """Nodes of the largest domain. A larger gang never fits."""


def request_class_key(request: Request, fabric: Snapshot) -> Hashable:
    """Return the key of the class of a request."""
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
        request.network and request.network.key,
        request.require,
    )


def request_class(request: Request, fabric: Snapshot) -> RequestClass:
    """Return the class of a request. Looks at every node once."""
    resources = tuple(request.needs.items())
    names = [level.name for level in fabric.levels]
    depth = names.index(request.require) + 1 if request.require in names else 0
    could = eligible(request, fabric)
    nodes = [node for node in fabric.nodes if node.name in could]
    domains = {node.name: fabric.path(node)[:depth] if depth else () for node in nodes}
    return RequestClass(
        key=request_class_key(request, fabric),
        resources=resources,
        allocatable={
            node.name: tuple([node.total(resource) for resource, _ in resources]) for node in nodes
        },
        domains=domains,
        largest_domain=max(Counter(domains.values()).values(), default=0),
    )


@dataclass(slots=True)
class _FittingNodes:
    """The nodes that fit a block of a request class now."""

    requests: RequestClass
    names: set[str] = field(default_factory=set)
    by_domain: dict[Domain, int] = field(default_factory=dict)


class FreeCapacity:
    """Resources in use and reserved, and the nodes that fit a block of each request class.

    On each node the larger of use and reservation counts.
    """

    def __init__(self, used: Mapping[Slot, int], reserved: Mapping[Slot, int] | None = None):
        self._used = dict(used)
        self._reserved = dict(reserved or {})
        self._excluded: set[str] = set()
        self._fitting: dict[Hashable, _FittingNodes] = {}

    def copy(self) -> Self:
        """Return a copy for trial allocations."""
        other = type(self)(self._used, self._reserved)
        other._excluded = set(self._excluded)
        for key, fitting in self._fitting.items():
            other._fitting[key] = _FittingNodes(
                fitting.requests, set(fitting.names), dict(fitting.by_domain)
            )
        return other

    @property
    def used(self) -> dict[Slot, int]:
        """Amount in use by node and resource, reservations included."""
        merged = dict(self._used)
        for slot, amount in self._reserved.items():
            merged[slot] = max(merged.get(slot, 0), amount)
        return merged

    @property
    def excluded(self) -> frozenset[str]:
        """Nodes that no job may use."""
        return frozenset(self._excluded)

    def in_use(self, slot: Slot) -> int:
        """Return the amount in use of one resource on one node, reservations included."""
        return max(0, self._used.get(slot, 0), self._reserved.get(slot, 0))

    def allocate(self, nodes: Iterable[str], resources: Mapping[str, int]) -> None:
        """Mark resources as used."""
        self._change(nodes, resources, 1)

    def release(self, nodes: Iterable[str], resources: Mapping[str, int]) -> None:
        """Release resources."""
        self._change(nodes, resources, -1)

    def reserve(self, reserved: Mapping[Slot, int]) -> None:
        """Reserve resources, in addition to earlier reservations."""
        for slot, amount in reserved.items():
            self._reserved[slot] = max(self._reserved.get(slot, 0), amount)
        self._refresh({node for node, _ in reserved})

    def exclude(self, nodes: Iterable[str]) -> None:
        """Exclude these nodes."""
        names = set(nodes)
        self._excluded |= names
        self._refresh(names)

    def fitting_domains(self, requests: RequestClass, nodes: int) -> list[Domain]:
        """Return the domains that fit a gang of this many nodes."""
        counts = self._fitting_nodes(requests).by_domain
        return [domain for domain, free in counts.items() if free >= nodes]

    def fits(self, requests: RequestClass, nodes: int) -> bool:
        """Return True if a gang of this many nodes fits in one domain."""
        counts = self._fitting_nodes(requests).by_domain
        return any(free >= nodes for free in counts.values())

    def free_nodes(self, requests: RequestClass, domain: Domain) -> int:
        """Return the number of nodes of a domain that fit a block."""
        return self._fitting_nodes(requests).by_domain.get(domain, 0)

    def node_fits(self, requests: RequestClass, node: str) -> bool:
        """Return True if a node fits a block."""
        return node in self._fitting_nodes(requests).names

    def pick_nodes(self, requests: RequestClass, nodes: int) -> tuple[str, ...]:
        """Return nodes as a placement might choose them: the first ones of the fullest domain."""
        fitting = self._fitting_nodes(requests)
        domains = self.fitting_domains(requests, nodes)
        domain = min(domains, key=lambda d: (fitting.by_domain[d], d))
        names = (
            name
            for name in requests.allocatable
            if name in fitting.names and requests.domains[name] == domain
        )
        return tuple(islice(names, nodes))

    def _fitting_nodes(self, requests: RequestClass) -> _FittingNodes:
        found = self._fitting.get(requests.key)
        if found is None:
            found = self._fitting[requests.key] = _FittingNodes(requests)
            self._refresh(requests.allocatable, only=found)
        return found

    def _change(self, nodes: Iterable[str], resources: Mapping[str, int], sign: int) -> None:
        names = set(nodes)
        for node in names:
            for resource, amount in resources.items():
                slot = (node, resource)
                self._used[slot] = self._used.get(slot, 0) + sign * amount
        self._refresh(names)

    def _refresh(self, nodes: Collection[str], only: _FittingNodes | None = None) -> None:
        for fitting in (only,) if only is not None else self._fitting.values():
            requests, names = fitting.requests, fitting.names
            for node in nodes:
                allocatable = requests.allocatable.get(node)
                if allocatable is None:
                    continue
                fits = node not in self._excluded and self._has_free(
                    node, requests.resources, allocatable
                )
                if fits == (node in names):
                    continue
                domain = requests.domains[node]
                (names.add if fits else names.discard)(node)
                fitting.by_domain[domain] = fitting.by_domain.get(domain, 0) + (1 if fits else -1)

    def _has_free(
        self, node: str, resources: tuple[tuple[str, int], ...], allocatable: tuple[int, ...]
    ) -> bool:
        for (resource, amount), total in zip(resources, allocatable, strict=True):
            slot, most = (node, resource), total - amount
            if most < 0 or self._used.get(slot, 0) > most or self._reserved.get(slot, 0) > most:
                return False
        return True
