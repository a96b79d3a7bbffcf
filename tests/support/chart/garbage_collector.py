"""The garbage collector of a control plane, which looks for new kinds only every 30 s.

It does not delete what is owned by objects of a kind that came and went in between.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness.harness import OperatorHarness

CONTROLLER_MANAGER = "kube-controller-manager"
KNOWS_SECONDS = 100.0
"""Three times as long as it takes to look for kinds again."""


async def garbage_collector_knows_jobs(cluster: ControlPlane, harness: OperatorHarness) -> None:
    """Start it again, so that it looks for kinds now, and wait until it deletes an orphan.

    The job `first` of the namespace exists. It gives the kind of the orphan's owner.
    """
    await asyncio.to_thread(_restart, cluster)
    owner = {**await harness.job("first"), "metadata": {"name": "absent", "uid": "absent"}}
    reference = {key: owner[key] for key in ("apiVersion", "kind")} | owner["metadata"]
    metadata = {"name": "owned", "ownerReferences": [reference]}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    api, where = harness.api, harness.namespace
    await api.create("configmaps", body, where)
    await api.wait_for("configmaps", "owned", lambda o: o is None, where, seconds=KNOWS_SECONDS)


def _restart(cluster: ControlPlane) -> None:
    pid = cluster.component_pid(CONTROLLER_MANAGER)
    command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    cluster.end_component(CONTROLLER_MANAGER)
    cluster.run_component(CONTROLLER_MANAGER, command, {})
