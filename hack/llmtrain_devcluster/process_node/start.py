"""Add process nodes to a running control plane."""

from __future__ import annotations

import json
import os
import string
import sys
import time
from collections.abc import Mapping, Sequence

from llmtrain_devcluster.control_plane.control_plane import ClusterError, ControlPlane
from llmtrain_devcluster.control_plane.readiness import fetch
from llmtrain_devcluster.kubelet.statuses import NodeSpec
from llmtrain_devcluster.paths import PACKAGE_PARENT
from llmtrain_devcluster.process_node.images import Image, default_images
from llmtrain_devcluster.process_node.python_environment import HostPython, pod_environment
from llmtrain_devcluster.process_node.settings import AgentSettings

COMPONENT = "process-nodes"
TOPOLOGY = "network.topology.nvidia.com"
READY_SECONDS = 30.0


def machine_node(
    name: str, labels: Mapping[str, str] | None = None, *, gpus: int = 0, rdma: int = 0
) -> NodeSpec:
    """Return a node with this machine's processors and memory, and simulated GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return NodeSpec(
        name,
        labels or {},
        gpus=gpus,
        rdma=rdma,
        cpu=str(os.cpu_count() or 1),
        memory=f"{memory >> 10}Ki",
    )


def rack_nodes(racks: int, nodes_per_rack: int, *, gpus: int, rdma: int = 0) -> list[NodeSpec]:
    """Return nodes in racks, with the labels that NVIDIA's topograph writes.

    They are named rack-a-1, rack-a-2, ..., rack-b-1, ...; every rack is a leaf below one spine.
    """
    nodes = []
    for rack in range(racks):
        leaf = f"rack-{string.ascii_lowercase[rack]}"
        labels = {f"{TOPOLOGY}/leaf": leaf, f"{TOPOLOGY}/spine": "spine-1"}
        nodes += [
            machine_node(f"{leaf}-{index}", labels, gpus=gpus, rdma=rdma)
            for index in range(1, nodes_per_rack + 1)
        ]
    return nodes


def start_process_nodes(
    cluster: ControlPlane,
    nodes: Sequence[NodeSpec],
    *,
    images: Mapping[str, Image] | None = None,
    backoff_seconds: float = 10.0,
) -> None:
    """Start the agent as a component of the cluster; return when the nodes are Ready.

    `images` adds to the images that are always available.
    """
    folder = cluster.folder / COMPONENT
    environment = pod_environment(HostPython.current(), cluster.folder / "pod-python")
    settings = AgentSettings(
        server=cluster.url,
        token=cluster.token("admin"),
        ca_file=str(cluster.ca_file),
        certificate=str(cluster.folder / "tls" / "apiserver.crt"),
        key=str(cluster.folder / "tls" / "apiserver.key"),
        folder=str(folder),
        nodes=nodes,
        images=default_images(environment) | dict(images or {}),
        mounts=environment.mounts,
        backoff_seconds=backoff_seconds,
    )
    path = cluster.folder / f"{COMPONENT}.json"
    settings.write(path)
    argv = [sys.executable, "-m", __package__, str(path)]
    cluster.run_component(COMPONENT, argv, {"PYTHONPATH": str(PACKAGE_PARENT)})
    _await_nodes(cluster, {node.name for node in nodes})


def _await_nodes(cluster: ControlPlane, wanted: set[str]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        cluster.check()
        status, text = fetch(f"{cluster.url}/api/v1/nodes", cluster.token("admin"))
        items = json.loads(text)["items"] if status == 200 else []
        usable = {
            node["metadata"]["name"]
            for node in items
            if not node["spec"].get("taints") and node["status"].get("addresses")
        }
        if wanted <= usable:
            return
        if time.monotonic() > deadline:
            missing = ", ".join(sorted(wanted - usable))
            raise ClusterError(
                f"the nodes {missing} are not Ready after {READY_SECONDS:.0f} s; the agent's log:\n"
                f"{cluster.log_tail(COMPONENT)}"
            )
        time.sleep(0.1)
