"""Pods carry the domains of their nodes; pods of a release without these labels are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    QUICK_LEASE,
    OperatorHarness,
    OperatorProcess,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TOPOLOGY = "network.topology.nvidia.com"
SPINE, LEAF = "llmtrain.dev/level-spine", "llmtrain.dev/level-leaf"


async def test_pods_have_the_domains_of_their_nodes_and_old_pods_are_kept(
    installed: ControlPlane, harness: OperatorHarness, tmp_path: Path
) -> None:
    top = {f"{TOPOLOGY}/spine": "top"}
    await harness.add_nodes(
        {f"{TOPOLOGY}/leaf": "left", **top}, {f"{TOPOLOGY}/leaf": "right", **top}
    )
    harness.nodes.default = PodScript(exit_after=None)
    operator = OperatorProcess(installed, tmp_path, *QUICK_LEASE)
    operator.start()
    try:
        await harness.submit("job")
        await harness.phase("job", "Running")
        pods = await harness.pods()
        found = [pod["metadata"]["labels"] for pod in pods]
        assert {labels[SPINE] for labels in found} == {"top"}
        assert {labels[LEAF] for labels in found} == {"left", "right"}
        assert "llmtrain.dev/level-node" not in found[0]

        operator.kill()
        for pod in pods:
            without = {"metadata": {"labels": {SPINE: None, LEAF: None}}}
            await harness.patch_pod(pod["metadata"]["name"], without)
        operator.start()
        harness.nodes.default = PodScript(exit_after=0.2)
        await harness.submit("next", workers={"nodes": 1}, parallelism={"tensor": 2, "data": 1})
        await harness.wait("next", lambda job: status_of(job).get("phase") == "Queued")
        kept = await harness.job("job")
        assert status_of(kept)["phase"] == "Running" and not status_of(kept).get("restarts")
        assert {pod["metadata"]["uid"] for pod in await harness.pods()} == {
            pod["metadata"]["uid"] for pod in pods
        }
    finally:
        operator.stop()
