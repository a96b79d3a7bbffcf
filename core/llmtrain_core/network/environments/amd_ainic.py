"""AMD AI NICs (AINIC, Pollara): RoCE by the ROCm network operator."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Devices,
    Need,
    NeedKind,
    Value,
)

WHOLE, VIRTUAL = "amd.com/nic", "amd.com/vnic"
_SOURCE = "ROCm/network-operator: docs/_static/cluster-validation-config.yaml"
_NETWORK_OF = {WHOLE: "amd-host-device-nad", VIRTUAL: "vf-amd-host-device-nad"}


def roce(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield RoCE on a node with whole or virtual AI NICs.

    The name of the network of AMD's RCCL plugin is not documented, so no variable demands it. The
    index of the GID is AMD's.
    """
    resource = next((name for name in (WHOLE, VIRTUAL) if facts.amount(name)), None)
    if resource is None:
        return
    network = _NETWORK_OF[resource]
    yield CandidateNetwork(
        row="amd-ainic",
        fact=facts.allocatable_fact(resource),
        profiles=("roce",),
        devices=Devices(resource, _SOURCE),
        variables=(
            Value("NCCL_NET_PLUGIN", "librccl-anp.so", _SOURCE),
            Value("NCCL_IB_GID_INDEX", "1", _SOURCE),
            Value("NCCL_IB_USE_INLINE", "1", _SOURCE),
            Value("NCCL_GDR_FLUSH_DISABLE", "1", _SOURCE),
            Value("IONIC_LOCKFREE", "all", _SOURCE),
        ),
        demand=(),
        networks=(network,),
        networks_source=_SOURCE,
        network_per_device=True,
        need=Need(
            NeedKind.CONFIRMATION,
            f"the NetworkAttachmentDefinition {network} in the namespace of the job, and RCCL's"
            " plugin librccl-anp.so in its image",
        ),
    )
