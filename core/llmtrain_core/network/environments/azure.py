"""Azure (AKS): InfiniBand of the ND series."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Devices,
    Value,
)

PREFIX = "kubernetes.azure.com/"
VIRTUAL_FUNCTIONS, SHARED = "rdma/ib", "rdma/shared_ib"
AMD_GPU = "amd.com/gpu"
_REPOSITORY = "Azure/aks-rdma-infiniband: tests/scenarios/k8s"
_FUNCTIONS_SOURCE = f"{_REPOSITORY}/sriov/gpu/eight/eight.yaml"
_SHARED_SOURCE = f"{_REPOSITORY}/rdma/base/rdma-device.yaml"
_RCCL = f"{_REPOSITORY}/rccl/mpi-job.yaml"
_NCCL = (
    "Azure/ai-infrastructure-on-azure:"
    " infrastructure_validations/aks/NCCL/helm/nccl-test/values.yaml"
)


def infiniband(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield InfiniBand: a virtual function for each NIC, else all NICs shared."""
    if not facts.has_label(PREFIX):
        return
    if facts.amount(VIRTUAL_FUNCTIONS):
        devices = Devices(VIRTUAL_FUNCTIONS, _FUNCTIONS_SOURCE)
    elif facts.amount(SHARED):
        devices = Devices(SHARED, _SHARED_SOURCE, shared=True)
    else:
        return
    amd = (Value("RCCL_MSCCL_ENABLE", "0", _RCCL),) if facts.amount(AMD_GPU) else ()
    yield CandidateNetwork(
        row="azure-infiniband",
        fact=facts.allocatable_fact(devices.resource),
        profiles=("infiniband",),
        devices=devices,
        variables=(Value("NCCL_SOCKET_IFNAME", "eth0", _RCCL if amd else _NCCL), *amd),
        topology="azure",
    )
