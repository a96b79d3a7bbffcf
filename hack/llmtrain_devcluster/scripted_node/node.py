"""Nodes whose pod statuses follow a script, without running containers.

One watch serves all nodes, so hundreds of them are cheap. Use it inside the test's event loop:

    async with ScriptedNodes(api) as nodes:
        await nodes.add(NodeSpec("node-1", gpus=8))
        nodes.script(named("job-0-3"), PodScript(exit_after=1, exit_code=137))
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from llmtrain_devcluster.addresses import AddressBlock
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.kubelet.pod_watch import follow
from llmtrain_devcluster.kubelet.registration import register_node, report_ready
from llmtrain_devcluster.kubelet.statuses import NodeSpec
from llmtrain_devcluster.scripted_node.pod import PodScript, ScriptedPod

Pod = dict[str, Any]
Match = Callable[[Pod], bool]

__all__ = ["NodeSpec", "PodScript", "ScriptedNodes", "labelled", "named"]


def named(pattern: str) -> Match:
    """Match pods whose whole name fits a regular expression."""
    compiled = re.compile(pattern)
    return lambda pod: bool(compiled.fullmatch(pod["metadata"]["name"]))


def labelled(labels: Mapping[str, str]) -> Match:
    """Match pods that have all these labels."""
    return lambda pod: labels.items() <= (pod["metadata"].get("labels") or {}).items()


async def in_batches(work: Iterable[Awaitable[None]], size: int = 16) -> None:
    """Await in batches, to limit the load of the API server."""
    rest = iter(work)
    while batch := list(itertools.islice(rest, size)):
        await asyncio.gather(*batch)


@dataclass(frozen=True, slots=True)
class _Rule:
    match: Match
    script: PodScript | Callable[[Pod], PodScript]


class ScriptedNodes:
    """Any number of scripted nodes of one cluster."""

    def __init__(self, api: Api, default: PodScript | None = None):
        self.default = default or PodScript()
        self._api = api
        self._addresses = AddressBlock()
        self._rules: list[_Rule] = []
        self._nodes: dict[str, str] = {}
        self._silent: set[str] = set()
        self._pods: dict[str, ScriptedPod] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the nodes; they run until `stop` or `close`."""
        self._task = asyncio.create_task(self._follow())

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop, and remove the nodes and the pods that are still bound to them."""
        try:
            await self.stop()
        finally:
            await in_batches(pod.remove() for pod in self._pods.values())
            await in_batches(self._api.delete("nodes", n, missing_ok=True) for n in self._nodes)

    async def stop(self) -> None:
        """Stop, but leave all objects in the cluster.

        Raises an error that happened in a script or in the event loop.
        """
        errors: list[BaseException | None] = []
        if self._task is not None:
            self._task.cancel()
            errors = list(await asyncio.gather(self._task, return_exceptions=True))
            self._task = None
        for pod in self._pods.values():
            await pod.stop()
        self._addresses.close()
        for error in errors:
            if isinstance(error, Exception):
                raise error

    async def add(self, *specs: NodeSpec) -> None:
        """Create nodes, Ready and schedulable."""
        await in_batches(self._add(spec) for spec in specs)

    async def _add(self, spec: NodeSpec) -> None:
        address = self._addresses.node_address(len(self._nodes))
        self._nodes[spec.name] = address
        await register_node(self._api, spec, address)

    def script(self, match: Match, script: PodScript | Callable[[Pod], PodScript]) -> None:
        """Use this script for matching pods that start from now on; the latest rule wins."""
        self._rules.insert(0, _Rule(match, script))

    def pod(self, namespace: str, name: str) -> ScriptedPod:
        """Return the newest pod of that name on a scripted node."""
        for scripted_pod in reversed(self._pods.values()):
            if (scripted_pod.namespace, scripted_pod.name) == (namespace, name):
                return scripted_pod
        raise LookupError(f"no scripted node has the pod {namespace}/{name}")

    def end(
        self, namespace: str, name: str, code: int, reason: str = "", message: str = ""
    ) -> None:
        """End a pod's containers now, with this exit code, reason and termination message."""
        self.pod(namespace, name).end(code, reason, message)

    async def node_not_ready(self, name: str, status: str = "Unknown") -> None:
        """Stop the reports of a node: Ready becomes `status`, and pod statuses stay."""
        self._silent.add(name)
        # a copy: pods may be added or removed while one stops
        for scripted_pod in [pod for pod in self._pods.values() if pod.node == name]:
            await scripted_pod.stop()
        await report_ready(self._api, name, status)

    async def node_ready(self, name: str) -> None:
        """Make a node Ready again; its pods continue."""
        self._silent.discard(name)
        await report_ready(self._api, name, "True")
        for scripted_pod in self._pods.values():
            if scripted_pod.node == name:
                scripted_pod.start()

    async def _follow(self) -> None:
        async for kind, pod in follow(self._api, "pods", "spec.nodeName!="):
            node, uid = pod["spec"].get("nodeName", ""), pod["metadata"]["uid"]
            if node not in self._nodes:
                continue
            scripted_pod = self._pods.get(uid)
            if kind == "DELETED":
                if scripted_pod is not None:
                    del self._pods[uid]
                    await scripted_pod.stop()
                    self._addresses.release(scripted_pod.address)
            elif scripted_pod is None:
                self._start(pod, node)
            else:
                scripted_pod.update(pod)

    def _start(self, pod: Pod, node: str) -> None:
        script = self.default
        for rule in self._rules:
            if rule.match(pod):
                script = rule.script if isinstance(rule.script, PodScript) else rule.script(pod)
                break
        address = self._addresses.allocate()
        scripted_pod = ScriptedPod(self._api, pod, script, address, self._nodes[node])
        self._pods[pod["metadata"]["uid"]] = scripted_pod
        if node not in self._silent:
            scripted_pod.start()
