"""The levels of a fabric and the label schemes that are known by name.

Sources of the keys: the documents of topograph, the NVIDIA GPU operator, GKE, EKS, OCI and
CoreWeave; Kueue's topology examples. Levels go from far to near; the last one is the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmtrain_core.api.fabric import HOSTNAME, FabricSpec


@dataclass(frozen=True, slots=True)
class FabricLevel:
    """One level: its name, the node label that names the domain, and its oversubscription."""

    name: str
    node_label: str
    oversubscription: float = 1.0


Levels = tuple[FabricLevel, ...]

NODE = FabricLevel("node", HOSTNAME)


def _levels(*pairs: tuple[str, str]) -> Levels:
    return (*(FabricLevel(name, label) for name, label in pairs), NODE)


PRESETS: Mapping[str, Levels] = MappingProxyType(
    {
        "topograph": _levels(
            ("core", "fabric.topograph.run/tier-2"),
            ("spine", "fabric.topograph.run/tier-1"),
            ("leaf", "fabric.topograph.run/tier-0"),
        ),
        "topograph-legacy": _levels(
            ("core", "network.topology.nvidia.com/core"),
            ("spine", "network.topology.nvidia.com/spine"),
            ("leaf", "network.topology.nvidia.com/leaf"),
        ),
        "gke": _levels(
            ("block", "cloud.google.com/gce-topology-block"),
            ("subblock", "cloud.google.com/gce-topology-subblock"),
            ("host", "cloud.google.com/gce-topology-host"),
        ),
        "aws": _levels(
            ("layer-1", "topology.k8s.aws/network-node-layer-1"),
            ("layer-2", "topology.k8s.aws/network-node-layer-2"),
            ("layer-3", "topology.k8s.aws/network-node-layer-3"),
        ),
        "oci": _levels(
            ("block", "oci.oraclecloud.com/host.network_block_id"),
            ("rack", "oci.oraclecloud.com/host.rack_id"),
        ),
        "coreweave": _levels(
            ("fabric", "backend.coreweave.cloud/fabric"),
            ("superpod", "backend.coreweave.cloud/superpod"),
            ("leafgroup", "backend.coreweave.cloud/leafgroup"),
        ),
        "kueue": _levels(
            ("block", "cloud.provider.com/topology-block"),
            ("rack", "cloud.provider.com/topology-rack"),
        ),
        "zone": _levels(("zone", "topology.kubernetes.io/zone")),
    }
)


def levels_of(spec: FabricSpec) -> Levels:
    """Return the levels of a Fabric. Raises ValueError for an unknown preset."""
    if spec.preset is not None:
        if spec.preset not in PRESETS:
            raise ValueError(
                f"spec.preset: no preset is named {spec.preset!r}; use one of "
                + ", ".join(sorted(PRESETS))
            )
        return PRESETS[spec.preset]
    return tuple(
        FabricLevel(level.name, level.node_label, level.oversubscription)
        for level in spec.levels or []
    )


def detect(labels: Iterable[Mapping[str, str]]) -> Levels:
    """Choose levels by what the nodes carry: the first preset with a label on any node.

    A preset's levels that no node is labelled for are left out (a two-tier fabric has no core).
    Without any known label all nodes are one flat level.
    """
    present = {key for keys in labels for key in keys}
    for preset in PRESETS.values():
        used = tuple(level for level in preset if level.node_label in present or level is NODE)
        if len(used) > 1:
            return used
    return (NODE,)
