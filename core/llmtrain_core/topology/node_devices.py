"""Nodes with the devices that pods get by claims, as if they were allocatable resources."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from llmtrain_core.devices.capacity import DeviceClasses, NodeKinds, node_amounts
from llmtrain_core.devices.demand import DeviceKey
from llmtrain_core.devices.records import ClaimRecord, DeviceId, SliceRecord, devices_of_node
from llmtrain_core.topology.inventory import Node, Usage

Claimed = tuple[ClaimRecord, Mapping[str, int]]
"""An allocated claim, and what it takes of a node by name of the amount."""


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


def used_by_claims(
    claimed: Iterable[Claimed], requested: Callable[[str], Mapping[str, int]]
) -> dict[tuple[str, ...], dict[str, int]]:
    """Return what claims take of a node, by the UIDs of the pods that each is reserved for.

    `requested` returns the resources that a pod requests. They are a part of what kube-scheduler
    claims for the pod, so that part of these claims is left out.
    """
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for_requests: dict[str, dict[str, int]] = {}
    for claim, amounts in claimed:
        if claim.by_scheduler and claim.pods:
            _add(for_requests.setdefault(claim.pods[0], {}), amounts)
        else:
            _add(found.setdefault(claim.pods, {}), amounts)
    for pod, amounts in for_requests.items():
        own = requested(pod)
        more = {name: amount - own.get(name, 0) for name, amount in amounts.items()}
        more = {name: amount for name, amount in more.items() if amount > 0}
        if more:
            _add(found.setdefault((pod,), {}), more)
    return found


def _add(total: dict[str, int], amounts: Mapping[str, int]) -> None:
    for name, amount in amounts.items():
        total[name] = total.get(name, 0) + amount


def devices_of_nodes(
    nodes: Sequence[Node],
    slices: Collection[SliceRecord],
    claims: Collection[ClaimRecord],
    keys: Collection[DeviceKey],
    classes: DeviceClasses,
    requests: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> tuple[list[Node], list[Usage]]:
    """Return nodes with their devices, and what allocated claims use of them.

    `requests` has what pods request, by UID. Claims by kube-scheduler for the extended resources of
    a pod count beyond its requests only: those count as those of every pod.
    """
    by_node: dict[str, list[SliceRecord]] = {}
    for each in slices:
        by_node.setdefault(each.node, []).append(each)
    countable = classes.countable({*keys, *classes.extended.values()})
    listed = [*claims]
    by_device: dict[DeviceId, set[int]] = {}
    for index, claim in enumerate(listed):
        for device in claim.devices:
            by_device.setdefault(device, set()).add(index)
    found, usage = [], list[Usage]()
    for node in nodes:
        own = by_node.get(node.name, [])
        kinds = NodeKinds([*devices_of_node(own)], classes)
        mine = set[int]().union(*(by_device.get(device.id, ()) for device in kinds.devices))
        held = [listed[index] for index in mine]
        amounts = node_amounts(kinds, held, countable)
        found.append(with_devices(node, own, amounts.total, classes) if own else node)
        used = {uid: device_resources(node, taken, classes) for uid, taken in amounts.taken.items()}
        claimed = ((claim, used[claim.uid]) for claim in held if claim.uid in used)
        by_user = used_by_claims(claimed, lambda uid: requests.get(uid, {}))
        for amounts_of_user in by_user.values():
            usage += [Usage(node.name, *each) for each in amounts_of_user.items()]
    return found, usage
