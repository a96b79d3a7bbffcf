"""Clusters and jobs of the size at which the placement must be quick."""

from __future__ import annotations

import json
import random
from typing import Any

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Node, Snapshot, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels
from tests.support.placement.cases import GPU, Case, occupancy, volumes

FABRICS = {"wide": (2, 2, 1), "narrow": (2, 4, 8)}
"""Oversubscription of core, spine and leaf: one that a good placement fills, and one that binds."""


def levels(fabric: str, nvlink: bool = False) -> Levels:
    """Return the levels of a fabric of topograph's older labels."""
    label = "network.topology.nvidia.com/"
    core, spine, leaf = FABRICS[fabric]
    return (
        FabricLevel("core", f"{label}core", core),
        FabricLevel("spine", f"{label}spine", spine),
        FabricLevel("leaf", f"{label}leaf", leaf, nvlink),
        NODE,
    )


def cluster(nodes: int, busy: float, fabric: str, leaf: int = 16, nvlink: bool = False) -> Snapshot:
    """Return a three-level fabric: spines of 256 nodes, cores of 4 spines, leaves as asked.

    Leaves of one node are what GKE labels as hosts; with NVLink, those of 18 nodes an NVL72.
    """
    above = levels(fabric, nvlink)
    spine = 256 // leaf * leaf
    found = []
    for index in range(nodes):
        path = (f"core-{index // spine // 4}", f"spine-{index // spine}", f"leaf-{index // leaf}")
        labels = {level.node_label: name for level, name in zip(above, path, strict=False)}
        found.append(Node(f"node-{index}", labels, {GPU: 8}))
    return snapshot(above, found, occupancy(found, busy, random.Random(1), above))


def sized_case(
    layout: Layout,
    nodes: int,
    busy: float,
    ratio: float,
    fabric: str,
    leaf: int = 16,
    nvlink: bool = False,
) -> Case:
    """Return a job of 8-GPU nodes on a cluster of that many nodes."""
    request = Request(
        layout, layout.world_size // 8, 8, volumes=volumes(layout, random.Random(2), ratio)
    )
    joined = " joined by NVLink" if nvlink else ""
    name = (
        f"{request.nodes} on {nodes} nodes, leaves of {leaf}{joined}, {busy:.0%} busy, {fabric},"
        f" {layout}, Vp/Vd {ratio}"
    )
    return Case(name, request, cluster(nodes, busy, fabric, leaf, nvlink))


def node_json(index: int) -> str:
    """Return a Node as an API server prints it: labels, conditions, images, managed fields."""
    leaf = index // 16
    labels = {f"feature.node.kubernetes.io/cpu-cpuid.{n}": "true" for n in range(40)}
    labels |= {
        "kubernetes.io/hostname": f"node-{index}",
        "network.topology.nvidia.com/leaf": f"leaf-{leaf}",
        "network.topology.nvidia.com/spine": f"spine-{leaf // 16}",
        "network.topology.nvidia.com/core": f"core-{leaf // 64}",
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    }
    resources = {
        "cpu": "192",
        "memory": "2113546200Ki",
        "ephemeral-storage": "1770585791219",
        "hugepages-2Mi": "0",
        "pods": "110",
        GPU: "8",
        "rdma/hca_shared_devices_a": "1k",
    }
    conditions = [
        {
            "type": kind,
            "status": "True" if kind == "Ready" else "False",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "reason": "KubeletIsFine",
            "message": "kubelet reports that all is well",
        }
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable", "Ready")
    ]
    images = [
        {
            "names": [f"registry.example/team/image-{n}@sha256:{n:064x}", f"image-{n}:v1"],
            "sizeBytes": 10**9 + n,
        }
        for n in range(40)
    ]
    managed: dict[str, Any] = {f"f:{key}": {} for key in labels}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"node-{index}",
                "uid": f"{index:032x}",
                "labels": labels,
                "annotations": {f"example.com/annotation-{n}": "x" * 60 for n in range(10)},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:labels": managed}}],
            },
            "spec": {"providerID": f"example:///zone/{index}", "podCIDR": "10.0.0.0/24"},
            "status": {
                "allocatable": resources,
                "capacity": resources,
                "conditions": conditions,
                "images": images,
                "nodeInfo": {"kubeletVersion": "v1.37.0"},
            },
        }
    )
