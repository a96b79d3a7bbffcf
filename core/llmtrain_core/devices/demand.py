"""What the claims of a pod need of a node, as amounts.

An amount has a name, like that of an extended resource. That of the devices of a class is the name
by which Kubernetes knows the class as an extended resource. Claims with selectors, and devices that
must be next to each other, have amounts of their own in addition, so that a node is full for all
jobs once the devices of the class are in use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.device_claims import DeviceClaim, DeviceRequest
from llmtrain_core.api.job import JobSpec
from llmtrain_core.api.workers import Workers

CLASS_PREFIX = "deviceclass.resource.kubernetes.io/"
"""Start of the extended resource that Kubernetes has for each DeviceClass."""
CHANNEL_CLASS = "compute-domain-default-channel.nvidia.com"
"""DeviceClass of the channel by which a pod joins a ComputeDomain. A node has one such device."""


@dataclass(frozen=True, slots=True, order=True)
class DeviceKind:
    """Devices of a class that meet selectors."""

    class_name: str
    selectors: tuple[str, ...] = ()
    """Expressions in CEL, in addition to those of the class."""

    @property
    def resource(self) -> str:
        """Name of the amount."""
        if not self.selectors:
            return f"{CLASS_PREFIX}{self.class_name}"
        return f"{self.class_name}[{_digest(*self.selectors)}]"


@dataclass(frozen=True, slots=True, order=True)
class AlignedDevices:
    """A number of devices of each kind that all have the same value of an attribute."""

    attribute: str
    members: tuple[tuple[DeviceKind, int], ...]
    """Kinds of devices in order, each once, with the number in a set."""

    @property
    def resource(self) -> str:
        """Name of the amount: the number of such sets."""
        names = "+".join(f"{count}*{kind.resource}" for kind, count in self.members)
        classes = "+".join(kind.class_name for kind, _ in self.members)
        return f"{classes}[{_digest(names, self.attribute)}]"


DeviceKey = DeviceKind | AlignedDevices
"""What an amount counts."""
Demand = Mapping[DeviceKey, int]
"""Amounts that a pod takes on its node."""


@dataclass(frozen=True, slots=True)
class SharedClaims:
    """What a gang claims once for all of its pods, of devices that all nodes reach."""

    count: int = 0
    """Number of claims."""
    amounts: tuple[tuple[DeviceKey, int], ...] = ()
    """Amount of each key, once."""
    kinds: frozenset[DeviceKind] = frozenset()
    """Devices that its requests can get."""

    @property
    def keys(self) -> frozenset[DeviceKey]:
        """What it claims."""
        return frozenset(key for key, _ in self.amounts)


NO_SHARED_CLAIMS = SharedClaims()
"""Those of a gang whose pods have claims of their own only."""


def is_whole_class(key: DeviceKey) -> bool:
    """Return True for all devices of a class, which are counted without evaluating more."""
    return isinstance(key, DeviceKind) and not key.selectors


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


def is_claimed(resource: str) -> bool:
    """Return True for the name of an amount of devices that pods get by claims."""
    return resource.startswith(CLASS_PREFIX) or resource.endswith("]")


def class_of(resource: str) -> str:
    """Return the classes of an amount as text."""
    return resource.removeprefix(CLASS_PREFIX).partition("[")[0]


def demand_of(spec: JobSpec) -> dict[DeviceKey, int]:
    """Return what a pod of a job takes by its own claims."""
    found = _demand_of_scope(spec, "pod")
    if spec.topology is not None and spec.topology.compute_domain is not None:
        channel = DeviceKind(CHANNEL_CLASS)
        found[channel] = found.get(channel, 0) + 1
    return found


def shared_claims_of(spec: JobSpec) -> SharedClaims:
    """Return what the gang of a job claims once for all of its pods."""
    claims = [claim for claim in spec.workers.device_claims or () if claim.scope == "gang"]
    kinds = frozenset(devices_of_request(each) for claim in claims for each in claim.requests)
    return SharedClaims(len(claims), tuple(_demand_of_scope(spec, "gang").items()), kinds)


def _demand_of_scope(spec: JobSpec, scope: str) -> dict[DeviceKey, int]:
    found: dict[DeviceKey, int] = {}
    for claim in spec.workers.device_claims or ():
        for key, amount in _demand_of_claim(claim) if claim.scope == scope else ():
            found[key] = found.get(key, 0) + amount * claim.claims_per_pod
    return found


def _demand_of_claim(claim: DeviceClaim) -> Iterable[tuple[DeviceKey, int]]:
    for request in claim.requests:
        yield DeviceKind(request.device_class_name), request.count
        if request.selectors:
            yield devices_of_request(request), request.count
    for constraint in claim.constraints or ():
        members: dict[DeviceKind, int] = {}
        for request in claim.requests:
            if constraint.requests is None or request.name in constraint.requests:
                kind = devices_of_request(request)
                members[kind] = members.get(kind, 0) + request.count
        yield AlignedDevices(constraint.match_attribute, tuple(sorted(members.items()))), 1


def devices_of_request(request: DeviceRequest) -> DeviceKind:
    """Return the devices that a request can get."""
    selectors = tuple(selector.cel.expression for selector in request.selectors or ())
    return DeviceKind(request.device_class_name, selectors)


def claim_amounts(spec: JobSpec) -> dict[str, int]:
    """Return what a pod of a job takes by its claims, by name of the amount."""
    return {key.resource: amount for key, amount in demand_of(spec).items()}


def counted_gpus(workers: Workers) -> str:
    """Return the name of the amount of GPUs of a job."""
    found = workers.gpu_class
    return workers.gpu_resource if found is None else DeviceKind(found).resource


def gpu_resource_of(workers: Mapping[str, Any], default: str) -> str:
    """Return the same of a stored job: `workers` as its spec has them, which may be invalid."""
    for claim in workers.get("deviceClaims") or ():
        for request in claim.get("requests") or ():
            if request.get("gpus"):
                return DeviceKind(str(request["deviceClassName"])).resource
    return str(workers.get("gpuResource") or default)
