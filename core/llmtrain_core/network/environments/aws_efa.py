"""AWS: Elastic Fabric Adapter (EFA), by the device plugin of EKS."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.rows import (
    HUGEPAGES,
    CandidateNetwork,
    Devices,
    Value,
)
from llmtrain_core.topology.resources import amounts

RESOURCE = "vpc.amazonaws.com/efa"
_SAMPLE = (
    "aws-samples/awsome-distributed-training:"
    " micro-benchmarks/nccl-tests/kubernetes/nccl-tests.yaml"
)
_PAGES = Value(HUGEPAGES, "5120Mi", _SAMPLE)
"""Memory of libfabric's EFA provider. It uses ordinary pages where a node has no huge pages."""


def efa(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield EFA on a node with devices of its plugin.

    The NCCL plugin sets the buffer and chunk sizes of each instance type itself.
    """
    if not facts.amount(RESOURCE):
        return
    enough = facts.amount(HUGEPAGES) >= amounts({_PAGES.name: _PAGES.value})[HUGEPAGES]
    yield CandidateNetwork(
        row="aws-efa",
        fact=facts.allocatable_fact(RESOURCE),
        profiles=("efa",),
        devices=Devices(RESOURCE, _SAMPLE),
        amounts=(_PAGES,) if enough else (),
        variables=(Value("FI_PROVIDER", "efa", _SAMPLE),),
        topology="aws",
    )
