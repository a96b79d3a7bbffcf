"""Node lists of GPU environments, and the network that the table selects for each."""

from __future__ import annotations

import yaml

from llmtrain_core.devices.capacity import DeviceClasses
from llmtrain_core.devices.records import slice_record
from llmtrain_core.network import (
    GangNetwork,
    NetworkRequest,
    NodeFacts,
    NodeNetwork,
    gang_networks,
)
from llmtrain_core.topology.inventory import node_from_raw
from llmtrain_core.topology.node_devices import devices_of_nodes
from tests.support.paths import ROOT

FOLDER = ROOT / "tests" / "core" / "network" / "node_lists"
"""Made from the labels and resources that each environment documents, in the order of its docs."""
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"
NETWORKS = "k8s.v1.cni.cncf.io/networks"


def facts_of(name: str) -> dict[str, NodeFacts]:
    items = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["items"]
    slices = [slice_record(item) for item in items if item["kind"] == "ResourceSlice"]
    nodes = [node_from_raw(item) for item in items if item["kind"] == "Node"]
    found, _ = devices_of_nodes(nodes, [each for each in slices if each], (), (), DeviceClasses())
    return {node.name: NodeFacts.of(node) for node in found}


def decided(name: str, gpus: int | None = None, **changes: object) -> tuple[GangNetwork, ...]:
    """Decide for a gang of all nodes of a list, which takes whole nodes."""
    nodes = facts_of(name)
    first = next(iter(nodes.values()))
    resource = AMD if first.amount(AMD) else NVIDIA
    request = NetworkRequest(
        nodes=len(nodes),
        gpus_per_node=gpus or first.amount(resource),
        gpu_resource=resource,
        **changes,  # type: ignore[arg-type]
    )
    return gang_networks(nodes, request, len(nodes))


def network(name: str, gpus: int | None = None, **changes: object) -> NodeNetwork:
    """Return the only network of a list of nodes."""
    (option,) = decided(name, gpus, **changes)
    assert option.network is not None
    return option.network
