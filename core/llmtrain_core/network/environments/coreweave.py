"""CoreWeave: InfiniBand, and RoCE on GB300. One device gives a pod all NICs of its node."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import INSTANCE_TYPE, NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Devices,
    Need,
    NeedKind,
    Value,
)

RESOURCE = "rdma/ib"
PREFIXES = ("ds.coreweave.com/", "backend.coreweave.cloud/")
_IB = "coreweave/nccl-tests: mpi-operator/nccl-test-distributed-h100-64-mpijob.yaml"
_ROCE = "coreweave/nccl-tests: mpi-operator/nccl-test-distributed-gb300-roce-nvl72-mpijob.yaml"
_NETWORKS = tuple(f"cw-multus/ibs{nic}p{port}-macvlan" for nic in range(4) for port in range(4))


def _is_coreweave(facts: NodeFacts) -> bool:
    return any(map(facts.has_label, PREFIXES)) and facts.amount(RESOURCE) > 0


def roce(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield RoCE on GB300, which has it or InfiniBand."""
    if not _is_coreweave(facts) or not facts.labels.get(INSTANCE_TYPE, "").startswith("gb300"):
        return
    yield CandidateNetwork(
        row="coreweave-roce",
        fact=facts.label_fact(INSTANCE_TYPE),
        profiles=("roce",),
        devices=Devices(RESOURCE, _ROCE, shared=True),
        variables=(
            Value("NCCL_SOCKET_IFNAME", "eth0", _ROCE),
            Value("NCCL_IB_HCA", "ibp", _ROCE),
            Value("NCCL_IB_ADDR_FAMILY", "AF_INET6", _ROCE),
            Value("NCCL_IB_ADDR_RANGE", "fd02::/16", _ROCE),
            Value("NCCL_IB_TC", "96", _ROCE),
            Value("NCCL_IB_ADAPTIVE_ROUTING", "1", _ROCE),
        ),
        networks=_NETWORKS,
        networks_source=_ROCE,
        need=Need(
            NeedKind.CONFIRMATION,
            "to know whether GB300 has RoCE or InfiniBand here, which no label of it says for"
            " certain",
        ),
        topology="coreweave",
    )


def infiniband(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield InfiniBand."""
    if not _is_coreweave(facts):
        return
    yield CandidateNetwork(
        row="coreweave-infiniband",
        fact=facts.allocatable_fact(RESOURCE),
        profiles=("infiniband",),
        devices=Devices(RESOURCE, _IB, shared=True),
        variables=(
            Value("NCCL_SOCKET_IFNAME", "eth0", _IB),
            Value("NCCL_IB_HCA", "ibp", _IB),
        ),
        topology="coreweave",
    )
