"""What the table knows about a network: the facts of a node, and what a pod needs to use it.

A row of the table is a function of an environment that reads `NodeFacts` and yields each
`CandidateNetwork`. A `source` names the public document from which a value is taken, as
`owner/repository: path` or by its title. docs/networks.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from llmtrain_core.api.job import NetworkProfile
from llmtrain_core.api.pod_patch import PodPatchSpec
from llmtrain_core.network.facts import NodeFacts

PROFILES: tuple[NetworkProfile, ...] = get_args(NetworkProfile)

NETWORKS = "k8s.v1.cni.cncf.io/networks"
"""Annotation of a pod by which Multus attaches networks to it."""
HUGEPAGES = "hugepages-2Mi"
GKE_NETWORKING = "networking.gke.io/"
INTERFACES = f"{GKE_NETWORKING}interfaces"
"""Annotation of a pod by which GKE attaches networks to it."""


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a variable or resource, and where it is documented."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Devices:
    """The extended resource of the NICs."""

    resource: str
    source: str
    shared: bool = False
    """Whether one device gives the pod all NICs of the node, so that the amount is 1. Otherwise
    each NIC is one device, and a pod gets the share that it has of the node's GPUs."""


class NeedKind(StrEnum):
    """What it takes to use a network beyond what a node shows."""

    CONFIRMATION = "Confirmation"
    """A property of the cluster that no node shows. A job confirms it by naming the profile."""
    CHOICE = "Choice"
    """One of several resources, which the job must name in `network.rdma`."""
    PRIVILEGE = "Privilege"
    """Pods above the Pod Security level baseline. The operator adds the `PodParts` of the network
    for a job that names its profile. For a network without, the job mounts paths of the node by
    `workers.podPatch`."""
    CLAIM = "Claim"
    """A claim of dynamic resource allocation, which the job must have."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a network needs that `auto` does not assume, as the end of `it needs ...`."""

    kind: NeedKind
    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class PodParts:
    """What the operator adds to pods for a network that needs them above the level baseline."""

    patch: PodPatchSpec
    """Sidecar, paths of the node, and security settings, as a job could have them in its patch."""
    annotations: tuple[Value, ...]
    """Annotations with the same value on all nodes."""
    networks: int
    """Networks of the node that GKE attaches to the pod, after the default one."""
    networks_source: str
    gpus: int
    """GPUs of a node. A pod needs all of them."""
    source: str


@dataclass(frozen=True, slots=True)
class CandidateNetwork:
    """A network that a node has, by one row of the table."""

    row: str
    fact: str
    """The fact of the node that matched, such as `allocatable rdma/ib: 8`."""
    profiles: tuple[NetworkProfile, ...]
    """The values of `network.profile` that this network satisfies; several if it is not known."""
    devices: Devices | None = None
    amounts: tuple[Value, ...] = ()
    """Other resources of the pod, such as huge pages."""
    variables: tuple[Value, ...] = ()
    demand: tuple[Value, ...] | None = None
    """Variables that make NCCL fail without this network, for a job that names the profile. None:
    those of the profile."""
    networks: tuple[str, ...] = ()
    """Networks that Multus attaches to the pod."""
    networks_source: str = ""
    network_per_device: bool = False
    """Whether the only network is attached once for each device."""
    need: Need | None = None
    parts: PodParts | None = None
    """What satisfies a need of privilege, if the operator can add it."""
    topology: str | None = None
    """Topology preset of the environment."""


Row = Callable[[NodeFacts], Iterator[CandidateNetwork]]
"""A row of the table: yields the networks of a node with these facts."""
