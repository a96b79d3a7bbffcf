"""Nodes with the devices that pods get by claims, as if they were allocatable resources."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from llmtrain_core.devices.capacity import DeviceClasses, NodeAmounts, NodeKinds, node_amounts
from llmtrain_core.devices.demand import DeviceKey
from llmtrain_core.devices.records import ClaimRecord, DeviceId, SliceRecord, devices_of_node
from llmtrain_core.topology.inventory import Node, Usage


def with_devices(
    node: Node,
    slices: Iterable[SliceRecord],
    total: Mapping[DeviceKey, int],
    classes: DeviceClasses,
) -> Node:
    """Return a node with its drivers, and with the amounts of its devices.

    An extended resource that a device plugin serves on the node is not one that a class serves.
    """
    amounts = device_resources(node, total, classes)
    drivers = frozenset(each.driver for each in slices)
    return replace(node, allocatable={**node.allocatable, **amounts}, drivers=drivers)


def device_resources(
    node: Node, amounts: Mapping[DeviceKey, int], classes: DeviceClasses
) -> dict[str, int]:
    """Return amounts of devices by name, and those of the extended resources that they serve."""
    found = {key.resource: amount for key, amount in amounts.items() if amount}
    for name, kind in classes.extended.items():
        if amounts.get(kind) and not node.allocatable.get(name):
            found[name] = amounts[kind]
    return found


def devices_of_nodes(
    nodes: Sequence[Node],
    slices: Collection[SliceRecord],
    claims: Collection[ClaimRecord],
    keys: Collection[DeviceKey],
    classes: DeviceClasses,
) -> tuple[list[Node], list[Usage]]:
    """Return nodes with their devices, and what allocated claims use of them.

    Claims by kube-scheduler for extended resources are left out: the requests of their pods count.
    """
    by_node: dict[str, list[SliceRecord]] = {}
    for each in slices:
        by_node.setdefault(each.node, []).append(each)
    countable = classes.countable({*keys, *classes.extended.values()})
    own_claims = [claim for claim in claims if not claim.by_scheduler]
    by_device: dict[DeviceId, set[int]] = {}
    for index, claim in enumerate(own_claims):
        for device in claim.devices:
            by_device.setdefault(device, set()).add(index)
    found, usage = [], list[Usage]()
    for node in nodes:
        own = by_node.get(node.name, [])
        kinds = NodeKinds([*devices_of_node(own)], classes)
        mine = set[int]().union(*(by_device.get(device.id, ()) for device in kinds.devices))
        amounts = node_amounts(kinds, [own_claims[index] for index in mine], countable)
        found.append(with_devices(node, own, amounts.total, classes) if own else node)
        usage += _usage(node, amounts, classes)
    return found, usage


def _usage(node: Node, amounts: NodeAmounts, classes: DeviceClasses) -> Iterator[Usage]:
    for taken in amounts.taken.values():
        for name, amount in device_resources(node, taken, classes).items():
            yield Usage(node.name, name, amount)
