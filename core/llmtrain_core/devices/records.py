"""ResourceSlices, DeviceClasses and allocated ResourceClaims, read from Kubernetes objects.

Drivers, and so in part their vendors, write what a slice says. What cannot be read is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

from llmtrain_core.api.base import read_quantity
from llmtrain_core.devices.selectors import Value, Version

Raw = Mapping[str, Any]

ALL_NODES = "*"
"""Stands for the node of devices that all nodes reach. No name of a node has this character."""

_UNUSABLE = frozenset({"NoSchedule", "NoExecute"})
"""Effects of a taint of a device that keep claims without a toleration from it."""
_BY_SCHEDULER = "resource.kubernetes.io/extended-resource-claim"
"""Annotation of a claim that kube-scheduler made for a pod that requests an extended resource."""
_VALUES = (("string", str), ("int", int), ("bool", bool))

DeviceId = tuple[str, str, str]
"""Driver, pool and name of a device."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a node."""

    id: DeviceId
    attributes: Mapping[tuple[str, str], Value] = field(default_factory=dict)
    """By domain and name."""
    capacity: Mapping[tuple[str, str], Fraction] = field(default_factory=dict)
    tainted: bool = False
    """Whether a taint keeps claims from it."""

    @property
    def driver(self) -> str:
        """Name of its driver."""
        return self.id[0]


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """The devices of a ResourceSlice that belong to one node, or that all nodes reach."""

    node: str
    """Name of the node, or `ALL_NODES`."""
    driver: str
    pool: str
    generation: int
    slices: int
    """Number of slices of the pool."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """A DeviceClass."""

    name: str
    selectors: tuple[str, ...]
    extended_resource: str = ""
    """Extended resource that its devices serve as well; empty for none."""
    created: str = ""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """An allocated ResourceClaim."""

    uid: str
    devices: tuple[DeviceId, ...]
    pods: tuple[str, ...] = ()
    """UIDs of the pods that it is reserved for."""
    groups: tuple[str, ...] = ()
    """UIDs of the PodGroups that it is reserved for: their pods share it."""
    by_scheduler: bool = False
    """Whether it says that kube-scheduler made it for the extended resources that a pod requests.

    Whoever may create claims can say so: such a claim takes what the pod does not request.
    """


@lru_cache(maxsize=65536)
def _shared(text: str) -> str:
    """Return one object for equal text: most devices of a cluster differ in little."""
    return text


def slice_record(raw: Raw) -> SliceRecord | None:
    """Read a ResourceSlice; None if its devices are neither those of one node nor of all nodes.

    Devices that some nodes reach are not counted.
    """
    spec = raw["spec"]
    node = ALL_NODES if spec.get("allNodes") is True else spec.get("nodeName")
    pool = spec.get("pool") or {}
    if not node:
        return None
    driver, name = _shared(spec["driver"]), _shared(pool.get("name") or "")
    return SliceRecord(
        node=_shared(node),
        driver=driver,
        pool=name,
        generation=int(pool.get("generation") or 0),
        slices=int(pool.get("resourceSliceCount") or 1),
        devices=tuple(_device(driver, name, device) for device in spec.get("devices") or ()),
    )


def _device(driver: str, pool: str, raw: Raw) -> Device:
    attributes = {
        _qualified(name, driver): value
        for name, found in (raw.get("attributes") or {}).items()
        if (value := _value(found)) is not None
    }
    capacity = {
        _qualified(name, driver): amount
        for name, found in (raw.get("capacity") or {}).items()
        if (amount := read_quantity(str(found.get("value")))) is not None
    }
    tainted = any(taint.get("effect") in _UNUSABLE for taint in raw.get("taints") or ())
    return Device((driver, pool, raw["name"]), attributes, capacity, tainted)


def _qualified(name: str, driver: str) -> tuple[str, str]:
    """Return domain and name of an attribute. The domain is that of the driver if it has none."""
    domain, _, identifier = name.rpartition("/")
    return _shared(domain or driver), _shared(identifier)


def _value(raw: Raw) -> Value | None:
    for name, kind in _VALUES:
        found = raw.get(name)
        if isinstance(found, kind):
            return _shared(found) if isinstance(found, str) else found
    return Version(str(raw["version"])) if "version" in raw else None


def class_record(raw: Raw) -> ClassRecord:
    """Read a DeviceClass."""
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    return ClassRecord(
        metadata["name"],
        tuple(item["cel"]["expression"] for item in spec.get("selectors") or () if "cel" in item),
        spec.get("extendedResourceName") or "",
        metadata.get("creationTimestamp") or "",
    )


def claim_record(raw: Raw) -> ClaimRecord | None:
    """Read a ResourceClaim; None if it takes no devices.

    Devices with admin access are not taken from others.
    """
    metadata, status = raw["metadata"], raw.get("status") or {}
    devices = (status.get("allocation") or {}).get("devices") or {}
    found = tuple(
        (result["driver"], result["pool"], result["device"])
        for result in devices.get("results") or ()
        if not result.get("adminAccess")
    )
    if not found:
        return None
    users = status.get("reservedFor") or ()
    pods = tuple(user["uid"] for user in users if user.get("resource") == "pods")
    groups = tuple(
        user["uid"]
        for user in users
        if user.get("resource") == "podgroups" and user.get("apiGroup") == "scheduling.k8s.io"
    )
    by_scheduler = (metadata.get("annotations") or {}).get(_BY_SCHEDULER) == "true"
    return ClaimRecord(metadata["uid"], found, pods, groups, by_scheduler)


def devices_of_node(slices: Iterable[SliceRecord]) -> Iterator[Device]:
    """Yield the devices of a node: those of the newest generation of each complete pool."""
    pools: dict[tuple[str, str], list[SliceRecord]] = {}
    for each in slices:
        found = pools.setdefault((each.driver, each.pool), [])
        newest = found[0].generation if found else each.generation
        if each.generation > newest:
            found.clear()
        if each.generation >= newest:
            found.append(each)
    for _, members in sorted(pools.items()):
        if len(members) == members[0].slices:
            for each in members:
                yield from each.devices
