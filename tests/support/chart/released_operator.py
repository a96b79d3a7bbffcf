"""The operator and the uninstall hook of a release, as local processes with its rights."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness.harness import SYSTEM, OperatorProcess

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
        shipped = [a for a in container["args"] if not a.startswith(own)]
        super().__init__(cluster, folder, *shipped, user=f"{ACCOUNT}operator")
        if port is not None:
            content = json.loads(self.kubeconfig.read_text())
            content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
            self.kubeconfig.write_text(json.dumps(content))


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
