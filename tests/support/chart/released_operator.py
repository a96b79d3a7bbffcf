"""The operator and the uninstall hook of a release, as local processes with its rights."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from tests.support.chart.releases import Releases
from tests.support.operator_harness.harness import PATIENT_LEASE, SYSTEM, OperatorProcess

ACCOUNT = f"system:serviceaccount:{SYSTEM}:llmtrain-"
RELEASE_USERS = {
    f"{ACCOUNT}{name}": ("system:serviceaccounts",) for name in ("operator", "uninstall")
}
"""Users with the names of the chart's service accounts, which have their roles."""


class ReleasedOperator(OperatorProcess):
    """A process with the user and the arguments of a Deployment of the release, but own ports."""

    def __init__(
        self, cluster: ControlPlane, folder: Path, deployment: Object, port: int | None = None
    ):
        """Connect to the API server, or to a port of this machine that forwards to it."""
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        own = ("--bind", "--metrics-port", "--health-port", "--progress-seconds", "--retry-period")
        own += ("--lease-duration", "--renew-deadline")
        shipped = [a for a in container["args"] if not a.startswith(own)]
        super().__init__(cluster, folder, *shipped, *PATIENT_LEASE, user=f"{ACCOUNT}operator")
        if port is not None:
            content = json.loads(self.kubeconfig.read_text())
            content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
            self.kubeconfig.write_text(json.dumps(content))


class ReleasedOperators:
    """The operators that a test starts from its release."""

    def __init__(self, cluster: ControlPlane, releases: Releases, folder: Path):
        self._cluster = cluster
        self._releases = releases
        self._folder = folder
        self.started: list[ReleasedOperator] = []

    async def start(
        self, name: str = "llmtrain-operator", port: int | None = None
    ) -> ReleasedOperator:
        """Start the operator of a Deployment; `port` forwards to the API server."""
        deployment = await self._releases.deployment(name)
        operator = ReleasedOperator(self._cluster, self._folder, deployment, port)
        self.started.append(operator)
        await asyncio.to_thread(operator.start)
        return operator

    def stop(self) -> None:
        """Stop all of them."""
        for operator in self.started:
            operator.stop()


def run_hook(cluster: ControlPlane, *namespaces: str, user: str = f"{ACCOUNT}uninstall") -> str:
    """Run what the hook of an uninstall runs, with its rights."""
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain_operator.uninstall", *namespaces],
        env={"KUBECONFIG": str(cluster.kubeconfig(user))},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def hook_pod(api: Api) -> str:
    """Wait until the pod of the uninstall hook runs; return its name."""
    for _ in range(600):
        for pod in await api.list("pods", SYSTEM):
            name = str(pod["metadata"]["name"])
            if name.startswith("llmtrain-uninstall") and pod["status"]["phase"] == "Running":
                return name
        await asyncio.sleep(0.1)
    raise TimeoutError("the hook of the uninstall does not run")


async def uninstall_with_hook(
    cluster: ControlPlane, nodes: ScriptedNodes, releases: Releases, *namespaces: str
) -> str:
    """Uninstall, and run the hook with its rights: scripted nodes run no program.

    Return what the hook prints. Its arguments are the watched namespaces.
    """
    uninstalling = asyncio.create_task(releases.uninstall("--timeout=300s"))
    pod = await hook_pod(releases.api)
    output = await asyncio.to_thread(run_hook, cluster, *namespaces)
    nodes.end(SYSTEM, pod, 0)
    await uninstalling
    return output
