"""GKE: gIB (RoCE), by the type of the accelerator.

It loads libraries of the node from host paths, so that its pods are above the Pod Security level
baseline.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import ACCELERATOR, NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Need,
    NeedKind,
)

GIB_ACCELERATORS = frozenset({"nvidia-h200-141gb", "nvidia-b200", "nvidia-gb200", "nvidia-gb300"})
_HOST_PATHS = Need(
    NeedKind.PRIVILEGE,
    "host paths with the NCCL of the node, and the cluster's names of its RDMA networks",
    "GoogleCloudPlatform/container-engine-accelerators: gpudirect-rdma/nccl-test.yaml",
)


def gib(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield gIB: A3 Ultra, A4, A4X. The script of the library sets its variables."""
    if facts.labels.get(ACCELERATOR) in GIB_ACCELERATORS:
        fact = facts.label_fact(ACCELERATOR)
        yield CandidateNetwork(
            "gke-gib", fact, ("roce",), demand=(), need=_HOST_PATHS, topology="gke"
        )
