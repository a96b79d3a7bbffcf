"""The operator of a release, as a local process with its rights."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.chart.releases import Releases
from tests.support.operator_harness.harness import PATIENT_LEASE, SYSTEM, OperatorProcess

ACCOUNT = f"system:serviceaccount:{SYSTEM}:llmtrain-"
RELEASE_USERS = {f"{ACCOUNT}operator": ("system:serviceaccounts",)}
"""A user with the name of the operator's service account, which has its roles."""


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
        shipped += [_as_flag(item["name"], item["value"]) for item in container["env"]]
        super().__init__(cluster, folder, *shipped, *PATIENT_LEASE, user=f"{ACCOUNT}operator")
        if port is not None:
            content = json.loads(self.kubeconfig.read_text())
            content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
            self.kubeconfig.write_text(json.dumps(content))


def _as_flag(variable: str, value: str) -> str:
    """Return the flag whose default an environment variable sets."""
    name = variable.removeprefix("LLMTRAIN_OPERATOR_").lower().replace("_", "-")
    return f"--{name}={value}"


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
