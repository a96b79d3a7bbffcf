"""The devices of nodes that pods get by claims, kept up to date with slices, classes and claims."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmtrain_core.devices.capacity import DeviceClasses, NodeAmounts, NodeKinds, node_amounts
from llmtrain_core.devices.demand import DeviceKey, DeviceKind
from llmtrain_core.devices.records import (
    ALL_NODES,
    ClaimRecord,
    ClassRecord,
    DeviceId,
    SliceRecord,
    devices_of_node,
)
from llmtrain_core.plan.memory.node_filter import WHOLE_GPU_CLASSES
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.node_devices import (
    Claimed,
    device_resources,
    used_by_claims,
    with_devices,
)
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.kube.informer import Informer

NO_KEYS = frozenset[DeviceKey]()
KEPT_KEYS = 64
"""Kinds of devices that are counted although no job claims them any more."""


@dataclass(frozen=True, slots=True)
class DeviceInformers:
    """The copies of what the API server says of devices.

    The slices have the indexes `node` and `pool` (`pool_key`).
    """

    slices: Informer[SliceRecord]
    classes: Informer[ClassRecord]
    claims: Informer[ClaimRecord]

    @property
    def missing(self) -> str:
        """Why devices are not known; empty if they are."""
        found = (informer.missing for informer in (self.slices, self.classes, self.claims))
        return next(filter(None, found), "")


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a node has, and from what it was counted."""

    slices: Sequence[SliceRecord]
    claims: Sequence[ClaimRecord]
    kinds: NodeKinds
    amounts: NodeAmounts


def pool_key(driver: str, pool: str) -> str:
    """Return the key of a pool. No name of a driver has a slash."""
    return f"{driver}/{pool}"


class NodeDevices:
    """Amounts of devices by node. They are counted when they are read, once per change.

    Those that all nodes reach are counted like those of one more node.
    """

    def __init__(self, demanded: Callable[[], frozenset[DeviceKey]] = lambda: NO_KEYS):
        """`demanded` returns the kinds of devices that jobs claim."""
        self._demanded = demanded
        self._informers: DeviceInformers | None = None
        self._demand: frozenset[DeviceKey] | None = None
        """What jobs claimed when the keys were set; None if the classes have changed since."""
        self._keys: frozenset[DeviceKey] = NO_KEYS
        self._classes = DeviceClasses()
        self._claims: dict[str, dict[str, ClaimRecord]] = {}
        """By key of the pool and UID."""
        self._changed: set[str] = set()
        """Nodes to count again."""
        self._classes_changed = False
        self._counted: dict[str, _Counted] = {}
        self._nodes: dict[str, tuple[Node, NodeAmounts, Node]] = {}
        self._single: dict[DeviceKey, str] = {}
        """A node that has such devices of its own, or an empty text."""

    def follow(self, informers: DeviceInformers) -> None:
        """Count the devices of these informers."""
        self._informers = informers

    def slice_changed(self, old: SliceRecord | None, new: SliceRecord | None) -> None:
        """Follow a change of a slice."""
        self._changed |= {record.node for record in (old, new) if record is not None}

    def class_changed(self, _old: ClassRecord | None, _new: ClassRecord | None) -> None:
        """Follow a change of a class."""
        self._classes_changed = True

    def claim_changed(self, old: ClaimRecord | None, new: ClaimRecord | None) -> None:
        """Follow a change of a claim."""
        before, after = _pools_of(old), _pools_of(new)
        for pool in before - after:
            assert old is not None
            self._claims[pool].pop(old.uid, None)
            if not self._claims[pool]:
                del self._claims[pool]
        for pool in after:
            assert new is not None
            self._claims.setdefault(pool, {})[new.uid] = new
        if self._informers is not None:
            slices = self._informers.slices
            self._changed |= {
                each.node for pool in before | after for each in slices.by_index("pool", pool)
            }

    @property
    def missing(self) -> str:
        """Why devices are not known; empty if they are."""
        return "they are not read" if self._informers is None else self._informers.missing

    @property
    def classes(self) -> DeviceClasses:
        """The DeviceClasses of the cluster."""
        self._current()
        return self._classes

    def counts(self, key: DeviceKey) -> bool:
        """Return True if devices of this kind are counted."""
        self._current()
        return key in self._keys

    def node(self, node: Node) -> Node:
        """Return a node with its devices as allocatable resources."""
        counted = self._current().get(node.name)
        if counted is None:
            return node
        known = self._nodes.get(node.name)
        if known is None or known[0] is not node or known[1] is not counted.amounts:
            made = with_devices(node, counted.slices, counted.amounts.total, self._classes)
            known = self._nodes[node.name] = node, counted.amounts, made
        return known[2]

    def claimed(self, node: Node) -> list[Claimed]:
        """Return what allocated claims take of a node, as the API server has it."""
        counted = self._current().get(node.name)
        if counted is None:
            return []
        taken = counted.amounts.taken
        return [
            (claim, device_resources(node, taken[claim.uid], self._classes))
            for claim in counted.claims
            if claim.uid in taken
        ]

    @property
    def shared(self) -> tuple[NodeAmounts, Sequence[ClaimRecord]]:
        """What all nodes reach, and the allocated claims that take of it."""
        counted = self._current().get(ALL_NODES)
        return (NodeAmounts({}, {}), ()) if counted is None else (counted.amounts, counted.claims)

    def single_node(self, key: DeviceKey) -> str:
        """Return a node that has such devices of its own, or an empty text."""
        current = self._current()
        if key not in self._single:
            nodes = (
                name
                for name, counted in current.items()
                if name != ALL_NODES and counted.amounts.total.get(key)
            )
            self._single[key] = next(nodes, "")
        return self._single[key]

    @property
    def nodes_with_claims(self) -> list[str]:
        """Names of the nodes of which claims have devices."""
        return [
            name
            for name, counted in self._current().items()
            if counted.amounts.taken and name != ALL_NODES
        ]

    def _current(self) -> Mapping[str, _Counted]:
        """Return the counts of all nodes with devices, up to date."""
        demanded = NO_KEYS if self._informers is None else self._demanded()
        if self._informers is not None:
            if self._classes_changed:
                self._classes_changed = False
                self._classes = DeviceClasses(self._informers.classes.values())
                self._demand = None
            if demanded is not self._demand:
                self._count_other_keys(demanded)
                self._demand = demanded
            if self._changed:
                self._count_nodes(self._informers)
        return self._counted

    def _count_other_keys(self, demanded: frozenset[DeviceKey]) -> None:
        """Count what jobs claim now. What they do not claim any more stays a while."""
        whole = {DeviceKind(name) for name in WHOLE_GPU_CLASSES if name in self._classes}
        self._single.clear()
        wanted = self._classes.countable(demanded | {*self._classes.extended.values(), *whole})
        if self._demand is None or len(self._keys) > 2 * len(wanted) + KEPT_KEYS:
            self._keys = wanted
            self._changed |= self._counted.keys()
            for counted in self._counted.values():
                counted.kinds.keep(wanted)
        elif more := wanted - self._keys:
            self._keys |= more
            for name in self._counted.keys() - self._changed:
                found = self._counted[name]
                added = node_amounts(found.kinds, found.claims, more)
                self._counted[name] = replace(found, amounts=found.amounts.joined(added))

    def _count_nodes(self, informers: DeviceInformers) -> None:
        """Count the nodes that have changed."""
        self._single.clear()
        for name in self._changed:
            slices = informers.slices.by_index("node", name)
            if not slices:
                self._counted.pop(name, None)
                self._nodes.pop(name, None)
                continue
            pools = {pool_key(each.driver, each.pool) for each in slices}
            claims = {uid: each for p in pools for uid, each in self._claims.get(p, {}).items()}
            kinds = self._kinds_of(name, slices)
            amounts = node_amounts(kinds, [*claims.values()], self._keys)
            self._counted[name] = _Counted(slices, [*claims.values()], kinds, amounts)
        self._changed = set()

    def _kinds_of(self, node: str, slices: Sequence[SliceRecord]) -> NodeKinds:
        """Return the devices of a node by kind: as before, unless slices or classes changed."""
        known = self._counted.get(node)
        if (
            known is not None
            and known.kinds.classes is self._classes
            and len(known.slices) == len(slices)
            and all(map(operator.is_, known.slices, slices))
        ):
            return known.kinds
        return NodeKinds([*devices_of_node(slices)], self._classes)


def _pools_of(claim: ClaimRecord | None) -> set[str]:
    devices: Iterable[DeviceId] = () if claim is None else claim.devices
    return {pool_key(driver, pool) for driver, pool, _ in devices}


def divided(
    claimed: Iterable[Claimed],
    is_ours: Callable[[str], bool],
    requested: Callable[[str], Mapping[str, int]],
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Divide what claims take of a node: by UID of the pods of jobs, and what others take."""
    by_pod: dict[str, Counter[str]] = {}
    foreign = Counter[str]()
    for pods, amounts in used_by_claims(claimed, requested).items():
        pod = next(filter(is_ours, pods), None)
        (foreign if pod is None else by_pod.setdefault(pod, Counter())).update(amounts)
    return {pod: dict(amounts) for pod, amounts in by_pod.items()}, dict(foreign)


def with_claims(pod: PodRecord, amounts: Mapping[str, int]) -> PodRecord:
    """Return a pod with what it takes by its claims."""
    total = Counter(dict(pod.resources))
    total.update(amounts)
    return replace(pod, resources=tuple(total.items()))
