"""NVIDIA network operator: InfiniBand or RoCE on clusters of one's own, and on OpenShift.

The name of a resource is the administrator's choice. By the names that the documentation of
OpenShift uses, `..._ib` is InfiniBand and `..._eth` is RoCE. Nothing else on a node says so.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.api.job import NetworkProfile
from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Devices,
    Need,
    NeedKind,
)

SHARED = "rdma/"
EXCLUSIVE = (
    "nvidia.com/hostdev",
    "nvidia.com/mlnxnics",
    "nvidia.com/sriovlegacy",
    "openshift.io/",
)
"""Prefixes of the resources of virtual functions and of whole NICs. Others in the domain
nvidia.com cannot be distinguished from GPUs."""
_PLUGIN = "Mellanox/k8s-rdma-shared-dev-plugin: README.md"
_OPERATOR = "Mellanox/network-operator: example/sriov-network/sriov-network-pod.yaml"
_OPENSHIFT = "Red Hat, OpenShift Container Platform: NVIDIA GPUDirect Remote Direct Memory Access"


def shared(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield the NICs of the shared device plugin: one device gives a pod all of them."""
    by_profiles: dict[tuple[NetworkProfile, ...], list[str]] = {}
    for resource in facts.resources(SHARED):
        by_profiles.setdefault(_profiles(resource), []).append(resource)
    for profiles, found in sorted(by_profiles.items()):
        for resource in found:
            yield CandidateNetwork(
                row="nvidia-network-operator",
                fact=facts.allocatable_fact(resource),
                profiles=profiles,
                devices=Devices(
                    resource, _PLUGIN if profiles == _UNKNOWN else _OPENSHIFT, shared=True
                ),
                need=_choice(found) if len(found) > 1 else _NEEDS[profiles],
            )


_UNKNOWN: tuple[NetworkProfile, ...] = ("infiniband", "roce")
_NEEDS: dict[tuple[NetworkProfile, ...], Need | None] = {
    ("infiniband",): None,
    ("roce",): Need(
        NeedKind.CONFIRMATION,
        "a network of Multus, without which a RoCE device has no address in a pod",
    ),
    _UNKNOWN: Need(
        NeedKind.CONFIRMATION,
        "to know whether it is InfiniBand or RoCE, which the name of the resource does not say",
    ),
}


def _profiles(resource: str) -> tuple[NetworkProfile, ...]:
    if resource.endswith(("/ib", "_ib")):
        return ("infiniband",)
    return ("roce",) if resource.endswith("_eth") else _UNKNOWN


def _choice(resources: list[str]) -> Need:
    return Need(NeedKind.CHOICE, "network.rdma to choose one of " + ", ".join(resources))


def exclusive(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield virtual functions and whole NICs, which are attached to a pod by Multus."""
    found = [resource for prefix in EXCLUSIVE for resource in facts.resources(prefix)]
    for resource in found:
        yield CandidateNetwork(
            row="nvidia-network-operator",
            fact=facts.allocatable_fact(resource),
            profiles=_UNKNOWN,
            devices=Devices(resource, _OPERATOR),
            need=_choice(found) if len(found) > 1 else _ATTACHED,
        )


_ATTACHED = Need(
    NeedKind.CONFIRMATION, "a network of Multus, whose name is the administrator's choice"
)
