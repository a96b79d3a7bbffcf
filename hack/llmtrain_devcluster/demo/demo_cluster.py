"""The demo's cluster: two racks of process nodes, the API installed, the operator running."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain_devcluster import detached
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.process_node.start import rack_nodes, start_process_nodes

ROOT = Path(__file__).parents[3]
JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"
NAMESPACE = "demo"
# A user with the name of the service account, so that the shipped role binding applies.
OPERATOR = "system:serviceaccount:llmtrain-system:llmtrain-operator"
CRDS = ("llmtrainingjobs.llmtrain.dev", "fabrics.llmtrain.dev")
DEFINITIONS = "apiextensions.k8s.io/v1/customresourcedefinitions"
SHIPPED = ROOT / "deploy" / "llmtrain.yaml"
NOT_INSTALLED = ("Deployment", "PodDisruptionBudget", "Service")
"""Kinds of objects that run the operator in the cluster: here it is a process beside it."""
RACKS, NODES_PER_RACK, GPUS = 2, 2, 2
NODES = rack_nodes(RACKS, NODES_PER_RACK, gpus=GPUS)
NAME = "demo"


@dataclass(slots=True)
class DemoCluster:
    """A control plane with the nodes, the API and the operator of the demo."""

    cluster: ControlPlane

    @classmethod
    def new(cls, options: Options | None = None) -> DemoCluster:
        """Return a cluster with the operator's user, not started yet."""
        return cls(ControlPlane(options, users={OPERATOR: []}))

    def start_nodes(self) -> None:
        """Start the racks."""
        start_process_nodes(self.cluster, NODES)

    def describe_nodes(self) -> str:
        """Return a description of the nodes."""
        return f"{RACKS} racks x {NODES_PER_RACK} process nodes x {GPUS} GPUs"

    async def install(self, api: Api) -> None:
        """Install the CRDs and the RBAC as shipped, then start the operator with these rights."""
        for document in yaml.safe_load_all(SHIPPED.read_text("utf-8")):
            if document["kind"] not in NOT_INSTALLED:
                await api.apply(document)
        for crd in CRDS:
            await api.wait_for(DEFINITIONS, crd, _established)
        await self._namespace(api)
        self._operator()

    async def _namespace(self, api: Api) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": labels},
        }
        await api.apply(body)

    def _operator(self) -> None:
        config = self.cluster.kubeconfig(OPERATOR)
        ports = ["--bind", "127.0.0.1", "--metrics-port", "0", "--health-port", "0"]
        # There is no other operator, and this one keeps its lease on a busy machine.
        lease = ["--lease-duration", "120", "--renew-deadline", "100"]
        self.cluster.run_component(
            "operator",
            [sys.executable, "-m", "llmtrain_operator", *ports, *lease],
            {"KUBECONFIG": str(config)},
        )

    def keep(self) -> str:
        """Detach the cluster; return the administrator's kubeconfig."""
        return detached.keep(self.cluster, NAME, [node.name for node in NODES]).kubeconfig


def _established(definition: dict[str, Any] | None) -> bool:
    conditions = ((definition or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
