"""Section `workers.deviceClaims` of a job: devices by dynamic resource allocation (DRA).

The names are those of Kubernetes (resource.k8s.io/v1 ResourceClaim). Two fields are left out on
purpose: `adminAccess` gives a pod devices that others use, and `config` is executed by drivers,
which run as root on the node.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Name, ObjectName, Rule, list_map, list_set

MAX_DEVICES = 32
"""Devices of one ResourceClaim (`AllocationResultsMaxSize` of Kubernetes)."""
CLAIM_NAME_LENGTH = 40
"""Leaves room for the number of the claim in a DNS label."""
_DOMAIN = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"

ClaimName = Annotated[
    str,
    Field(min_length=1, max_length=CLAIM_NAME_LENGTH, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
Expression = Annotated[str, Field(min_length=1, max_length=256)]
"""Bounded, because it is evaluated for every device of a cluster."""
Attribute = Annotated[
    str, Field(min_length=3, max_length=96, pattern=rf"^{_DOMAIN}/{_IDENTIFIER}$")
]
"""Name of an attribute of devices with its domain, such as `resource.kubernetes.io/pcieRoot`."""
DeviceCount = Annotated[int, Field(ge=1, le=MAX_DEVICES)]


class CelSelector(ApiModel):
    """A condition in the Common Expression Language (CEL)."""

    expression: Expression
    """Expression about the variable device. Supported are device.driver, device.attributes,
    device.capacity, comparisons, in, has, !, && and ||, startsWith, endsWith and contains of text,
    and compareTo, isLessThan and isGreaterThan of a quantity. The operator evaluates it to count
    the devices of a node."""


class DeviceSelector(ApiModel):
    """A condition that a device must meet."""

    cel: CelSelector
    """Condition in CEL."""


class DeviceRequest(ApiModel):
    """Devices of one DeviceClass."""

    name: Name
    """Name of the request. Must be unique in the claim."""
    device_class_name: ObjectName
    """Name of the DeviceClass."""
    count: DeviceCount = 1
    """Number of devices. A claim has at most 32 devices."""
    selectors: Annotated[list[DeviceSelector], Field(max_length=4)] | None = None
    """Conditions that each device must meet, in addition to those of the class."""
    gpus: bool = False
    """The devices are the GPUs of the job: gpuResource is not requested. All claims of a pod
    together must have gpusPerNode of them, of one class."""


class DeviceConstraint(ApiModel):
    """A condition that devices must meet together."""

    requests: Annotated[list[Name], Field(min_length=1, max_length=16), list_set()] | None = None
    """Names of the requests whose devices it is about. All requests of the claim when absent. A
    request can be in one constraint only."""
    match_attribute: Attribute
    """Attribute that all of these devices must have, with the same value."""


class DeviceClaim(ApiModel):
    """A ResourceClaim of each pod, or of the gang. The operator creates its template."""

    name: ClaimName
    """Name of the claim. Must be unique in the job."""
    scope: Literal["pod", "gang"] = "pod"
    """Who shares the devices: pod, each pod has claims of its own; gang, all pods of the gang share
    one claim of their PodGroup, whose devices all nodes must reach. gang needs the feature gate
    DRAWorkloadResourceClaims (Kubernetes 1.37)."""
    claims_per_pod: DeviceCount = 1
    """Number of such claims in each pod. With one GPU and one NIC in the claim and a constraint,
    each claim is a GPU with a NIC next to it."""
    requests: Annotated[list[DeviceRequest], Field(min_length=1, max_length=16), list_map("name")]
    """Devices of the claim."""
    constraints: Annotated[list[DeviceConstraint], Field(max_length=8)] | None = None
    """Conditions that the devices of the claim must meet together."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.scope != 'gang' || self.claimsPerPod == 1",
            "a claim that all pods share is one claim: leave claimsPerPod out, or use scope pod",
            ".claimsPerPod",
            lambda self: self.scope != "gang" or self.claims_per_pod == 1,
        ),
        Rule(
            "self.scope != 'gang' || !self.requests.exists(request, request.gpus)",
            "the GPUs of a rank are on its node, and no claim that all pods share: use scope pod",
            ".scope",
            lambda self: self.scope != "gang" or not any(item.gpus for item in self.requests),
        ),
    )

    @property
    def names(self) -> list[str]:
        """Names of the claims in a pod."""
        if self.claims_per_pod == 1:
            return [self.name]
        return [f"{self.name}-{index}" for index in range(self.claims_per_pod)]


DeviceClaims = Annotated[list[DeviceClaim], Field(max_length=8), list_map("name")]
