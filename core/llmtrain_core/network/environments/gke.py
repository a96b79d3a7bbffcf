"""GKE: gIB (RoCE), GPUDirect-TCPXO and GPUDirect-TCPX, by the type of the accelerator.

All three load libraries of the node from host paths, so that their pods are above the Pod Security
level baseline. The two TCP ones need a sidecar with `NET_ADMIN` besides.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import ACCELERATOR, INSTANCE_TYPE, NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Need,
    NeedKind,
)

GIB_ACCELERATORS = frozenset({"nvidia-h200-141gb", "nvidia-b200", "nvidia-gb200", "nvidia-gb300"})
TCPXO_ACCELERATOR, TCPX_ACCELERATOR = "nvidia-h100-mega-80gb", "nvidia-h100-80gb"
TCPX_INSTANCE = "a3-highgpu-8g"
_SAMPLES = "GoogleCloudPlatform/container-engine-accelerators: {}"
_HOST_PATHS = Need(
    NeedKind.PRIVILEGE,
    "host paths with the NCCL of the node, and the cluster's names of its RDMA networks",
    _SAMPLES.format("gpudirect-rdma/nccl-test.yaml"),
)


def _sidecar(name: str, sample: str) -> Need:
    text = f"a privileged sidecar, {name}, and host paths with the NCCL of the node"
    return Need(NeedKind.PRIVILEGE, text, _SAMPLES.format(sample))


def gib(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield gIB: A3 Ultra, A4, A4X. The script of the library sets its variables."""
    if facts.labels.get(ACCELERATOR) in GIB_ACCELERATORS:
        fact = facts.label_fact(ACCELERATOR)
        yield CandidateNetwork(
            "gke-gib", fact, ("roce",), demand=(), need=_HOST_PATHS, topology="gke"
        )


def tcpxo(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield GPUDirect-TCPXO: A3 Mega."""
    if facts.labels.get(ACCELERATOR) == TCPXO_ACCELERATOR:
        need = _sidecar("tcpxo-daemon", "gpudirect-tcpxo/nccl-test-latest.yaml")
        fact = facts.label_fact(ACCELERATOR)
        yield CandidateNetwork("gke-tcpxo", fact, ("tcpxo",), need=need, topology="gke")


def tcpx(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield GPUDirect-TCPX: A3 High. It has no value of `network.profile`."""
    high = facts.labels.get(INSTANCE_TYPE) == TCPX_INSTANCE
    if high and facts.labels.get(ACCELERATOR) == TCPX_ACCELERATOR:
        need = _sidecar("tcpx-daemon", "gpudirect-tcpx/nccl-test-latest.yaml")
        yield CandidateNetwork(
            "gke-tcpx", facts.label_fact(ACCELERATOR), (), need=need, topology="gke"
        )
