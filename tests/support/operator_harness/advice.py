"""A test harness that follows the message of a waiting job: it frees each node that it names."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from llmtrain_devcluster.api import WAIT_SECONDS, Object
from tests.support.operator_harness.harness import OperatorHarness, condition, mark_node

FABRICS = "llmtrain.dev/v1alpha1/fabrics"
PRIORITY_CLASSES = "scheduling.k8s.io/v1/priorityclasses"
_HELPS = re.compile(r"it fits(?: in [^;]*?)? when these nodes become available: ([^;]*)")
_NODES = re.compile(r"([\w -]+) \(([^)]*)\)")


def nodes_by_cause(message: str) -> dict[str, list[str]]:
    """Return the nodes that the message names, by the cause that excludes them."""
    found = _HELPS.search(message)
    assert found, message
    return {cause: nodes.split() for nodes, cause in _NODES.findall(found[1])}


class CaseBench(OperatorHarness):
    """The namespace and nodes of one case."""

    async def add_nodes(
        self, *labels: dict[str, str], gpus: int = 2, start: int = 0, pods: int = 110
    ) -> list[str]:
        """Add nodes, and wait until their initial taints are removed."""
        names = await super().add_nodes(*labels, gpus=gpus, start=start, pods=pods)
        for name in names:
            await self.api.wait_for(
                "nodes", name, lambda n: n is not None and not n["spec"].get("taints"), seconds=60
            )
        return names

    async def submit(self, name: str, **spec: Any) -> Object:
        """Create a job after a delay, so that the operator has received earlier changes.

        It watches nodes, pods, Fabrics and jobs separately, so it could receive the job first.
        """
        await asyncio.sleep(0.5)
        return await super().submit(name, **spec)

    async def wait_reason(
        self,
        name: str,
        reason: str,
        *words: str,
        kind: str = "Placed",
        seconds: float = WAIT_SECONDS,
    ) -> str:
        """Wait until a job has this wait reason; return the message."""
        found = condition(await self.reason(name, kind, reason, seconds), kind)
        assert found["status"] == "False"
        for word in words:
            assert word in found["message"], (word, found["message"])
        return str(found["message"])

    async def starts(self, name: str) -> None:
        await self.phase(name, "Running")

    async def follow(self, message: str) -> None:
        """Free the nodes that the message names, and nothing else."""
        for causes, nodes in nodes_by_cause(message).items():
            for cause in causes.split(" and "):
                for node in nodes:
                    await self._free(node, cause)

    async def _free(self, node: str, cause: str) -> None:
        if cause == "cordoned":
            await self.node(node, {"spec": {"unschedulable": None}})
        elif cause == "not ready":
            await self.nodes.node_ready(node)
        elif cause == "taint not tolerated":
            await self.node(node, {"spec": {"taints": None}})
        elif cause.startswith("avoided for "):
            await self.mark(node, cause.split("condition ")[1].split("=")[0], "False")
        elif cause == "node selector does not match":
            await self.node(node, {"metadata": {"labels": {"harness": self.tag}}})
        else:
            assert cause.endswith(" in use"), cause
            await self._empty(node)

    async def _empty(self, node: str) -> None:
        """Delete the job or the foreign pod that uses a node."""
        for pod in await self.pods():
            if pod["spec"].get("nodeName") != node:
                continue
            job = pod["metadata"].get("labels", {}).get("llmtrain.dev/job-name")
            if job is not None:
                await self.delete(job)
            else:
                await self.api.delete(
                    "pods", pod["metadata"]["name"], self.namespace, grace_seconds=0
                )

    async def mark(self, node: str, kind: str, status: str, reason: str = "Scripted") -> None:
        """Set a condition of a node, as the agent of a cloud does."""
        await mark_node(self.api, node, kind, status, reason)

    async def node(self, name: str, body: Object) -> None:
        await self.api.patch("nodes", name, body)

    async def small(self, name: str, **spec: Any) -> None:
        """Submit a job of one node."""
        await self.submit(name, workers={"nodes": 1, **spec.pop("workers", {})}, **spec)

    async def runs_small(self, name: str, **spec: Any) -> None:
        await self.small(name, **spec)
        await self.starts(name)

    async def fabric(self, **levels: str) -> Object:
        """Create a Fabric with these levels, from far to near, and the node level."""
        found = [{"name": name, "nodeLabel": label} for name, label in levels.items()]
        near = {"name": "node", "nodeLabel": "kubernetes.io/hostname"}
        body = {
            "apiVersion": "llmtrain.dev/v1alpha1",
            "kind": "Fabric",
            "metadata": {"name": self.tag},
            "spec": {"levels": [*found, near]},
        }
        return await self.api.create(FABRICS, body)

    async def priority_class(self, **more: str) -> None:
        """Create a PriorityClass for this case."""
        body = {"metadata": {"name": self.tag}, "value": 9, **more}
        await self.api.create(PRIORITY_CLASSES, body)

    async def enter(self) -> None:
        await self.api.create("namespaces", {"metadata": {"name": self.namespace}})
        await self.api.wait_for(
            "serviceaccounts", "default", lambda found: found is not None, self.namespace
        )

    async def leave(self) -> None:
        await self.clear()
        await self.api.delete(FABRICS, self.tag, missing_ok=True)
        await self.api.delete(PRIORITY_CLASSES, self.tag, missing_ok=True)
        await self.api.delete("namespaces", self.namespace)
