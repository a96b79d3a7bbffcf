"""Label presets: the node labels that name the levels of a fabric on each platform.

Sources of the labels: the documents of topograph, the NVIDIA GPU operator, GKE, EKS, OCI and
CoreWeave, Kueue's topology examples, the manifests of oracle-quickstart/oci-hpc-oke (`oci-rdma`),
and the torset labeler of Azure/ai-infrastructure-on-azure. `levels_of` gives the levels of a
Fabric, and `detect` chooses a preset by the labels of the nodes. `inventory.Snapshot.path` reads
the labels of a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels, is_known

NVLINK_LABELS = (
    "nvidia.com/gpu.clique",
    "accelerator.topograph.run/domain",
    "network.topology.nvidia.com/accelerator",
    "ds.coreweave.com/nvlink.domain",
    "topology.k8s.aws/ultraserver-id",
)
"""Labels of NVLink domains, most reliable first: only GPUs of one clique reach each other."""

NVLINK = FabricLevel("nvlink", NVLINK_LABELS[0], nvlink=True, optional=True)

_MOST_TIERS = 12
"""Maximum number of topograph tiers. A status has up to 16 levels; real fabrics have up to 4."""


def _levels(*pairs: tuple[str, str]) -> Levels:
    return (*(FabricLevel(name, label, optional=True) for name, label in pairs), NVLINK, NODE)


PRESETS: Mapping[str, Levels] = MappingProxyType(
    {
        "topograph": _levels(
            *((f"tier-{n}", f"fabric.topograph.run/tier-{n}") for n in range(_MOST_TIERS)[:2:-1]),
            ("core", "fabric.topograph.run/tier-2"),
            ("spine", "fabric.topograph.run/tier-1"),
            ("leaf", "fabric.topograph.run/tier-0"),
        ),
        "topograph-legacy": _levels(
            ("datacenter", "network.topology.nvidia.com/datacenter"),
            ("core", "network.topology.nvidia.com/core"),
            ("spine", "network.topology.nvidia.com/spine"),
            ("block", "network.topology.nvidia.com/block"),
            ("leaf", "network.topology.nvidia.com/leaf"),
        ),
        "gke": _levels(
            ("block", "cloud.google.com/gce-topology-block"),
            ("subblock", "cloud.google.com/gce-topology-subblock"),
            ("host", "cloud.google.com/gce-topology-host"),
        ),
        "aws": _levels(  # the highest number is the nearest
            ("layer-1", "topology.k8s.aws/network-node-layer-1"),
            ("layer-2", "topology.k8s.aws/network-node-layer-2"),
            ("layer-3", "topology.k8s.aws/network-node-layer-3"),
            ("layer-4", "topology.k8s.aws/network-node-layer-4"),
        ),
        "oci-rdma": _levels(
            ("island", "oci.oraclecloud.com/rdma.hpc_island_id"),
            ("block", "oci.oraclecloud.com/rdma.network_block_id"),
            ("local-block", "oci.oraclecloud.com/rdma.local_block_id"),
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
        "coreweave-legacy": _levels(
            ("fabric", "ib.coreweave.cloud/fabric"),
            ("superpod", "ib.coreweave.cloud/superpod"),
            ("leafgroup", "ib.coreweave.cloud/leafgroup"),
        ),
        "azure": _levels(("torset", "ib/torset")),
        "kueue": _levels(
            ("block", "cloud.provider.com/topology-block"),
            ("rack", "cloud.provider.com/topology-rack"),
        ),
        "zone": _levels(
            ("region", "topology.kubernetes.io/region"),
            ("zone", "topology.kubernetes.io/zone"),
        ),
        "nvlink": _levels(),
    }
)


def levels_of(spec: FabricSpec) -> Levels:
    """Return the levels of a Fabric; `fit` those of a preset to the nodes afterwards.

    Raises ValueError for an unknown preset, or a duplicate level name.
    """
    label = spec.nvlink.node_label if spec.nvlink else None
    if spec.preset is not None:
        if spec.preset not in PRESETS:
            raise ValueError(
                f"spec.preset: no preset is named {spec.preset!r}; use one of "
                + ", ".join(sorted(PRESETS))
            )
        levels = PRESETS[spec.preset]
        return _with_nvlink(levels, label) if label else levels
    levels = tuple(
        FabricLevel(level.name, level.node_label, level.oversubscription)
        for level in spec.levels or []
    )
    return _with_nvlink(levels, label) if label else levels


def _with_nvlink(levels: Levels, label: str) -> Levels:
    """Mark the level with the label as the NVLink level, or add one directly above the node."""
    levels = tuple(level for level in levels if not (level.nvlink and level.optional))
    if any(level.node_label == label for level in levels):
        return tuple(replace(lv, nvlink=True) if lv.node_label == label else lv for lv in levels)
    if any(level.name == NVLINK.name for level in levels):
        raise ValueError(
            f"spec.levels: the name {NVLINK.name!r} belongs to the level of"
            " spec.nvlink.nodeLabel; rename the level, or give both the same nodeLabel"
        )
    return (*levels[:-1], FabricLevel(NVLINK.name, label, nvlink=True), levels[-1])


def fit(levels: Levels, labels: Iterable[Mapping[str, str]]) -> Levels:
    """Remove the levels of a preset whose label is on no node.

    A two-tier fabric has no core, and NVLink is a level only where one domain spans nodes. Levels
    that a Fabric lists explicitly are kept. If no node has any label of the preset, its nearest
    level is kept, so that the missing labels are reported.
    """
    nodes = list(labels)
    present = {key for keys in nodes for key in keys}
    kept: list[FabricLevel] = []
    for level in levels:
        if not level.optional or (not level.nvlink and level.node_label in present):
            kept.append(level)
        elif level.nvlink and (real := _nvlink(nodes, present)) is not None:
            kept.append(real)
    network = [level for level in levels if level.optional and not level.nvlink]
    if network and not any(level in kept for level in network):
        kept.insert(0, network[-1])
    return tuple(kept)


def _nvlink(nodes: Sequence[Mapping[str, str]], present: set[str]) -> FabricLevel | None:
    """Return the level of the most reliable label that puts two nodes into one NVLink domain."""
    for label in NVLINK_LABELS:
        level = replace(NVLINK, node_label=label)
        if label in present:
            sizes = Counter(level.domain(keys) for keys in nodes)
            del sizes[None]
            if sizes and max(sizes.values()) > 1:
                return level
    return None


def detect(labels: Iterable[Mapping[str, str]]) -> Levels:
    """Choose the first preset with a label on any node, and fit it to the nodes.

    Empty labels count only if no preset has other ones: they are reported, but show no network.
    Without any known label all nodes are on one flat level.
    """
    nodes = list(labels)
    filled = {key for keys in nodes for key, value in keys.items() if is_known(value)}
    for present in (filled, {key for keys in nodes for key in keys}):
        for preset in PRESETS.values():
            if any(level.node_label in present for level in preset[:-1] if not level.nvlink):
                return fit(preset, nodes)
    return fit(PRESETS["nvlink"], nodes)
