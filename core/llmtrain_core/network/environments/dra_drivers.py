"""Drivers of dynamic resource allocation (DRA) that give pods NICs by claims."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from llmtrain_core.api.job import NetworkProfile
from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.rows import CandidateNetwork, Need, NeedKind

DRIVERS: MappingProxyType[str, tuple[NetworkProfile, ...]] = MappingProxyType(
    {
        "efa.networking.k8s.aws": ("efa",),
        "mrdma.google.com": ("roce",),
        "dra.net": ("infiniband", "roce"),
    }
)
"""Drivers of NICs, and the profiles that their devices satisfy."""


def claims(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield the networks of the drivers of a node, which a pod gets by a claim only."""
    for driver, profiles in DRIVERS.items():
        if driver in facts.drivers:
            need = Need(NeedKind.CLAIM, "a ResourceClaim of its driver (workers.deviceClaims)")
            yield CandidateNetwork("dra", f"ResourceSlice of driver {driver}", profiles, need=need)
